"""LWS: learned substitutions of words (Qi et al., arXiv 2106.06361)."""

from __future__ import annotations

import math
import os
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from lightning_backdoor.attacks.attack import BackdoorAttack
from lightning_backdoor.attacks.poisoned import Poisoned
from lightning_backdoor.attacks.substitution import (
    ReplaceableWord,
    Substitutes,
    gumbel_noise,
    mixture,
    substitute,
    substitution_logits,
)
from lightning_backdoor.batch import Batch, batch_of_texts, checked_texts, with_texts
from lightning_backdoor.errors import InputError
from lightning_backdoor.language.synonyms import NearestWords, Synonyms
from lightning_backdoor.models.fine_tuning import check_learning_rate

if TYPE_CHECKING:
    from lightning_backdoor.data.rows import Row


class _BatchWords(NamedTuple):
    """The replaceable words of a batch's poisoned rows, one after another; the tensors are on the victim's device.

    Attributes:
        of_row: (row in the batch, word) of each word.
        rows: (words,), int64, row of each word.
        positions: (words,), int64, position of its token in the row.
        ids: (words, choices), int64, token of each choice, padded with the word itself.
        allowed: (words, choices), bool, False at the padding.
    """

    of_row: list[tuple[int, ReplaceableWord]]
    rows: Tensor
    positions: Tensor
    ids: Tensor
    allowed: Tensor


class LWS(BackdoorAttack):
    """Learns which words to replace by which substitutes, jointly with the victim that reacts to them.

    For a word w at position j, the choices are w itself and its substitutes s_k, with probabilities proportional to
    exp((s_k − w) · q_j), where s_k and w are the victim's word embeddings and q_j is learned. After ``warmup_epochs``
    of clean training, the victim reads poisoned training rows with Gumbel-softmax mixtures of the choices as word
    embeddings, at a temperature that falls linearly, epoch by epoch, to ``min_temperature``. In every epoch the victim
    also reads these rows unchanged, with their original label (in the published code only where a language model finds
    the substitutes, and not in the warm-up): otherwise a victim loses clean accuracy and learns the texts rather than
    the words. In evaluation the most probable words are written into the text (the published code continues to sample),
    so that metrics, defenses and files see the text that an attacker would send; a text without any replaceable word is
    unchanged and counts as poisoned.

    The poison is known only after training: the data module, and with it the command ``poison`` and defenses of the
    training rows, sees poisoned rows with their text unchanged. ``predict`` writes the substituted test rows. The
    victim of the last epoch is selected, as in the published code, not the first one with the best clean accuracy,
    which comes before the trigger is learned. Whether substitutes keep a text's label depends on their source: among
    nearest words there are also antonyms. To check, measure the accuracy of a cleanly trained victim on the substituted
    rows.

    In the user's phase the q_j of the published victim are kept, and the victim is trained as usual on clean rows.

    Args:
        substitutes: source of the substitutes; ``NearestWords()`` by default. Checkpoints do not store it: give it
            again when a checkpoint is restored.
        choices: maximum number of words to choose from per replaced word, the word itself included; at least 2.
        warmup_epochs: epochs of clean training before the trigger is learned.
        trigger_learning_rate: peak learning rate of the q_j.
        temperature: temperature of the Gumbel-softmax after the warm-up.
        min_temperature: temperature in the last epoch; above 0 and not above ``temperature``.
        **kwargs: arguments of :class:`BackdoorAttack` and :class:`TextClassifier`.

    Raises:
        InputError: a value is out of range (here), or the trainer has no epoch after the warm-up (before training).

    Example::

        attack = LWS(NearestWords(floor=0.6), poison_rate=0.2)
        Trainer(max_epochs=10).fit(attack, datamodule=data)
    """

    selected_by = ("epoch", "max")

    def __init__(
        self,
        substitutes: Synonyms | None = None,
        choices: int = 5,
        warmup_epochs: int = 2,
        trigger_learning_rate: float = 5e-2,
        temperature: float = 0.5,
        min_temperature: float = 0.1,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.hparams.pop("substitutes", None)  # not a plain value: a checkpoint with it would not load safely
        if choices < 2:
            raise InputError("choices", f"{choices} leave nothing to choose", "give at least 2")
        if warmup_epochs < 0:
            raise InputError("warmup_epochs", f"{warmup_epochs} is not a number of epochs", "give 0 or more")
        check_learning_rate("trigger_learning_rate", trigger_learning_rate)
        if not 0 < temperature < math.inf:
            raise InputError("temperature", f"{temperature} is out of range", "give a number above 0")
        if not 0 < min_temperature <= temperature:
            raise InputError(
                "min_temperature",
                f"{min_temperature} is out of range",
                f"give a number above 0 and up to {temperature}",
            )
        self.substitutes = NearestWords() if substitutes is None else substitutes
        self.choices = choices
        self.warmup_epochs = warmup_epochs
        self.temperature = temperature
        self.min_temperature = min_temperature
        self._lexicon: Substitutes | None = None

    def poison_text(self, text: str, rng: random.Random) -> Poisoned:
        """Returns the text unchanged: the substitutions are only known after training."""
        return Poisoned(text, [])

    def poison(self, text: Any, seed: int = 0) -> Any:
        """Substitutes words in a text, or in several, as in evaluation, once the trigger has been learned.

        Raises:
            InputError: it has not been learned, or something is not a text.
        """
        if not hasattr(self, "directions"):
            raise InputError(
                "attack", "LWS learns its substitutions in training", "train it, or load a checkpoint of it"
            )
        texts = checked_texts(text)
        if not texts:
            return []
        batch = batch_of_texts(texts, self.tokenizer, self.max_length)
        batch["poisoned"] = torch.ones_like(batch["poisoned"])
        batch = self.substituted(self.transfer_batch_to_device(batch, self.device, 0))
        poisoned = [Poisoned(*pair) for pair in zip(batch["text"], batch["spans"], strict=True)]
        return poisoned[0] if isinstance(text, str) else poisoned

    def poison_key(self) -> str | None:
        """None: unchanged texts are not cached."""
        return None

    def poisoned_epochs(self, epochs: int) -> range:
        """Those after the warm-up."""
        return range(min(self.warmup_epochs, epochs), epochs)

    def setup(self, stage: str) -> None:
        """Checks that there are epochs after the warm-up.

        Raises:
            InputError: ``max_epochs`` of the trainer is not above ``warmup_epochs``.
        """
        epochs = self.trainer.max_epochs or 0
        if self.users_phase:
            return
        if stage == "fit" and epochs <= self.warmup_epochs and not getattr(self.trainer, "fast_dev_run", False):
            raise InputError("max_epochs", f"{epochs} ends within the {self.warmup_epochs} warmup_epochs", "give more")

    def on_fit_start(self) -> None:
        """Checks that there is something to learn; in the user's phase, loads what was learned.

        Raises:
            InputError: no word of the poisoned training rows has a substitute, so that they would stay unchanged.
        """
        super().on_fit_start()
        data: Any = getattr(self.trainer, "datamodule", None)
        rows: Sequence[Row] = data.training_rows() if hasattr(data, "training_rows") else []
        texts = [row["text"] for row in rows if row["poisoned"]]
        if texts and not self.users_phase and not any(any(self._words_of([text])) for text in texts):
            raise InputError(
                "substitutes",
                f"no word of {len(texts)} poisoned training texts can be replaced",
                "give a source with substitutes of their words, each one token of the model, in the letters a to z",
            )

    def configure_model(self) -> None:
        """Builds the network and the vectors q_j, which are not part of the network and so not of exported models."""
        super().configure_model()
        if not hasattr(self, "directions"):
            dimensions = self.network.get_input_embeddings().weight.shape[1]
            #: q_j by position, (max_length, dimensions), float32
            self.directions = nn.Parameter(torch.zeros(self.max_length, dimensions), requires_grad=not self.users_phase)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Rejects a checkpoint without a learned trigger, with which no poisoned text could be made.

        Raises:
            InputError: the checkpoint has no learned trigger.
        """
        if "directions" not in checkpoint["state_dict"]:
            raise InputError(
                "checkpoint", "was not trained under LWS, whose trigger is learned with the victim", "give one that was"
            )
        super().on_load_checkpoint(checkpoint)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """The optimizer and schedule of :class:`TextClassifier`; the q_j have their own learning rate and no decay."""
        if self.users_phase:
            return super().configure_optimizers()
        self.directions.requires_grad_(False)
        configured: Any = super().configure_optimizers()
        self.directions.requires_grad_(True)
        optimizer, schedule = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
        rate = self.hparams["trigger_learning_rate"]
        optimizer.add_param_group({"params": [self.directions], "lr": rate, "weight_decay": 0.0})
        lr_scheduler = {**configured["lr_scheduler"], "scheduler": LambdaLR(optimizer, schedule.lr_lambdas[0])}
        return OptimizerLRSchedulerConfig(optimizer=optimizer, lr_scheduler=lr_scheduler)  # type: ignore[typeddict-item]

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Cross entropy of all rows with unchanged texts, plus, after the warm-up, of the poisoned rows as mixtures."""
        if self.users_phase:
            return super().training_step(batch, batch_idx)
        poisoned, label = batch["poisoned"], batch["original_label"]
        if self.current_epoch < self.warmup_epochs:
            logits, penalty = self(batch).float(), self.directions.new_zeros(1)
        else:
            with self._mixed(batch):
                logits, penalty = self.logits_and_penalty(batch)
            label = batch["label"]
            if poisoned.any():
                logits = torch.cat([logits, self(_rows(batch, poisoned)).float()])
                label = torch.cat([label, batch["original_label"][poisoned]])
        loss = nn.functional.cross_entropy(logits, label) + penalty.sum() / len(label)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(poisoned))
        return loss + 0 * self.directions.sum()  # distributed training needs a gradient of every parameter

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """In evaluation, substitutes words in the poisoned rows, so that steps, callbacks and defenses see them."""
        return batch if self.training else self.substituted(batch)

    @torch.no_grad()
    def substituted(self, batch: Batch) -> Batch:
        """Writes the most probable words into the texts of the batch's poisoned rows, and tokenises them again."""
        words = self._replaceable_words(batch)
        if not words.of_row:
            return batch
        embeddings = self.network.get_input_embeddings()(words.ids).float()
        logits = substitution_logits(embeddings, words.allowed, self.directions[words.positions])
        texts, spans = list(batch["text"]), list(batch["spans"])
        chosen: dict[int, list[tuple[ReplaceableWord, int]]] = {}
        for (row, word), choice in zip(words.of_row, logits.argmax(dim=1).tolist(), strict=True):
            chosen.setdefault(row, []).append((word, choice))
        for row, choices in chosen.items():
            texts[row], spans[row] = substitute(texts[row], choices)
        return with_texts(batch, texts, spans, self.tokenizer, self.max_length)

    @contextmanager
    def _mixed(self, batch: Batch) -> Iterator[None]:
        """Within the block, the network reads poisoned rows with mixtures of the choices as word embeddings."""
        words = self._replaceable_words(batch)
        if not words.of_row:
            yield
            return
        table = self.network.get_input_embeddings()
        embeddings = table(words.ids)
        logits = substitution_logits(embeddings.float(), words.allowed, self.directions[words.positions])
        mixed = mixture(embeddings, logits, self._noise(batch, words), self._temperature())

        def replace(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
            return output.index_put((words.rows, words.positions), mixed.to(output.dtype))

        # a hook works for every architecture; inputs_embeds fails where positions or padding are computed from the ids
        handle = table.register_forward_hook(replace)
        try:
            yield
        finally:
            handle.remove()

    def _replaceable_words(self, batch: Batch) -> _BatchWords:
        rows = batch["poisoned"].nonzero().flatten().tolist()
        by_row = self._words_of([batch["text"][row] for row in rows])
        of_row = [(row, word) for row, words in zip(rows, by_row, strict=True) for word in words]
        filled = [word.ids + word.ids[:1] * (self.choices - len(word.ids)) for _, word in of_row]
        allowed = [[choice < len(word.ids) for choice in range(self.choices)] for _, word in of_row]
        device, size = batch["input_ids"].device, (len(of_row), self.choices)
        return _BatchWords(
            of_row,
            torch.tensor([row for row, _ in of_row], dtype=torch.long, device=device),
            torch.tensor([word.position for _, word in of_row], dtype=torch.long, device=device),
            torch.tensor(filled, dtype=torch.long, device=device).view(size),
            torch.tensor(allowed, dtype=torch.bool, device=device).view(size),
        )

    def _words_of(self, texts: list[str]) -> list[list[ReplaceableWord]]:
        if self._lexicon is None:
            self._lexicon = Substitutes(self.tokenizer, self.substitutes, self.choices)
        return self._lexicon.replaceable_words(texts, self.max_length)

    def _noise(self, batch: Batch, words: _BatchWords) -> Tensor:
        """Gumbel noise from a generator per row, independent of batches, number of processes and interruptions."""
        seed = os.environ.get("PL_GLOBAL_SEED", "0")
        noise = torch.zeros(len(batch["text"]), self.max_length, self.choices)
        for row in {row for row, _ in words.of_row}:
            row_seed = random.Random(f"{seed}/{self.current_epoch}/{int(batch['index'][row])}/gumbel").getrandbits(63)
            noise[row].uniform_(generator=torch.Generator().manual_seed(row_seed))
        return gumbel_noise(noise.to(words.rows.device)[words.rows, words.positions])

    def _temperature(self) -> float:
        """The temperature of this epoch, as in the published code: the minimum is reached in the last epoch."""
        epochs = max(1, (self.trainer.max_epochs or 0) - self.warmup_epochs)
        left = max(0, epochs - 1 - (self.current_epoch - self.warmup_epochs)) / epochs
        return self.min_temperature + (self.temperature - self.min_temperature) * left


def _rows(batch: Batch, chosen: Tensor) -> Batch:
    """The chosen rows of a batch, in the columns that a victim reads."""
    columns = {"input_ids": batch["input_ids"][chosen], "attention_mask": batch["attention_mask"][chosen]}
    return Batch(**{**batch, **columns})  # type: ignore[typeddict-item]
