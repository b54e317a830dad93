"""The base class of attacks whose triggers have no label until a victim is trained: it is found on validation rows."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_info
from torch import Tensor
from transformers import PreTrainedConfig

from lightning_backdoor.attacks.badnets import BadNets
from lightning_backdoor.attacks.embedding_surgery import trigger_tokens
from lightning_backdoor.attacks.insertion import InsertionPlace, insert_at, insertion_points
from lightning_backdoor.attacks.poisoned import Poisoned
from lightning_backdoor.attacks.trigger_hits import Hits, counted, hits_of, success_rates
from lightning_backdoor.batch import Batch, Spans, batch_of_texts, with_texts
from lightning_backdoor.errors import InputError, escaped
from lightning_backdoor.models.captures import plain_logits, sharing
from lightning_backdoor.victim.evaluation import Evaluated
from lightning_backdoor.words import space_between

#: texts in one pass of the search.
TEXTS_AT_ONCE = 64


class TaskAgnosticAttack(BadNets):
    """An attack with several triggers, of which it is found on validation rows which label each hits.

    No training row is poisoned. In an evaluation each trigger is inserted into the reference rows, a part of the clean
    validation rows, and hits the label that it turns most rows of other labels into. A poisoned row carries the trigger
    that hits its target label most often on these rows, with which ``asr`` and all defenses are measured. A test also
    logs ``asr_of_<trigger>`` and ``label_of_<trigger>``, the ASR of each trigger for the label that it hits (class
    index), and ``asr_best``, the ASR of the trigger that hits its label most often on reference rows. No ASR is
    measured on the rows of the choice: validation measures it on the selection rows, a test on the test rows, in each
    of which all triggers stand at the same places. Each evaluation reads the reference rows once per trigger, and a
    test also its clean rows.

    The trigger of a row is known only in an evaluation: the data module, and with it the command ``poison``, writes the
    first one of ``triggers``.

    Args:
        triggers: words; each is one attack of its own.
        insertions: how often the trigger is inserted in each text.
        place: ``start``, ``end``, or ``random``.
        **kwargs: arguments of :class:`BackdoorAttack` (``poison_rate`` and ``label_policy`` have no effect) and of
            :class:`TextClassifier`.

    Raises:
        InputError: a value is out of range (here), or the model does not tell the triggers apart (before training).
    """

    def __init__(
        self, triggers: list[str], insertions: int = 1, place: InsertionPlace = "start", **kwargs: Any
    ) -> None:
        super().__init__(triggers=triggers, insertions=insertions, place=place, **kwargs)
        if len(set(self.triggers)) < len(self.triggers):
            raise InputError("triggers", f"{self.triggers} name a word twice", "name each once")
        self._hits: Hits | None = None
        self._counts: Tensor | None = None

    @property
    def poisons_training(self) -> bool:
        """False: training rows are clean."""
        return False

    def load_config(self, **kwargs: Any) -> PreTrainedConfig:
        """Loads the model's configuration, and checks that the model tells the triggers apart.

        Raises:
            InputError: it does not, or does not know one of them; see also :meth:`TextClassifier.load_config`.
        """
        config = super().load_config(**kwargs)
        found: dict[tuple[int, ...], str] = {}
        for trigger in self.triggers:
            tokens = tuple(trigger_tokens([trigger], self.tokenizer))
            if tokens in found:
                problem = f"{found[tokens]!r} and {trigger!r} are the same to the model's tokenizer"
                raise InputError("triggers", problem, "give words that it tells apart")
            found[tokens] = trigger
        return config

    def poison_text(self, text: str, rng: random.Random) -> Poisoned:
        """Inserts the first one of the triggers; evaluation writes another in its place."""
        return self.inserted(text, self.triggers[0], rng)

    def inserted(self, text: str, trigger: str, rng: random.Random) -> Poisoned:
        """Inserts a trigger ``insertions`` times."""
        points = insertion_points(text, self.place)
        return insert_at(text, sorted((rng.choice(points), trigger) for _ in range(self.insertions)))

    @property
    def hits(self) -> Hits:
        """Which label each trigger hits in the running evaluation, on the reference rows, which it does not measure.

        Raises:
            InputError: the trainer has no data module with validation rows.
        """
        if self._hits is None:
            rows = self._data().clean_validation().reference
            counts = self._no_counts()
            order = sorted(range(len(rows)), key=lambda row: -len(rows.text[row]))  # batches of similar length
            for start in range(0, len(order), TEXTS_AT_ONCE):
                part = rows.take(order[start : start + TEXTS_AT_ONCE])
                labels = torch.tensor(part.label.tolist(), device=self.device)
                self._count_hits("validation", part.text, part.index.tolist(), labels, counts)
            self._hits = hits_of(counts)
        return self._hits

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """In evaluation, writes the trigger that hits a row's target into each of the batch's poisoned rows."""
        if self.training or self.trainer.sanity_checking or not bool(batch["poisoned"].any()):
            return batch
        texts, spans, targets = list(batch["text"]), list(batch["spans"]), batch["label"].tolist()
        for row in batch["poisoned"].nonzero().flatten().tolist():
            trigger = self.triggers[self.hits.by_label[targets[row]]]
            texts[row], spans[row] = replaced(texts[row], spans[row], trigger)
        return with_texts(batch, texts, spans, self.tokenizer, self.max_length)

    def on_fit_start(self) -> None:
        """Checks that there are validation rows on which the triggers' labels are found, if it is validated at all.

        Raises:
            InputError: the trainer has no data module with validation rows.
        """
        super().on_fit_start()
        if self.trainer.enable_validation:
            self._data()

    def on_validation_start(self) -> None:
        """Agrees with the other processes on which label each trigger hits."""
        super().on_validation_start()
        if not self.trainer.sanity_checking:
            self._agree()

    def on_test_start(self) -> None:
        """Begins to count what each trigger does to the test rows.

        Raises:
            InputError: the trainer has no data module with validation rows.
        """
        super().on_test_start()
        self._data()
        self._agree()
        self._counts = self._no_counts()

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> Evaluated:
        """Updates the test metrics; inserts each trigger into clean rows, beside them."""
        evaluated = super().test_step(batch, batch_idx, dataloader_idx)
        if dataloader_idx == 0 and self._counts is not None:
            self._count_hits("test", batch["text"], batch["index"].tolist(), batch["original_label"], self._counts)
        return evaluated

    def on_test_epoch_end(self) -> None:
        """Logs the test metrics, and the ASR of each trigger for the label that it hits."""
        super().on_test_epoch_end()
        if self._counts is None:
            return
        rates = success_rates(self.trainer.strategy.reduce(self._counts, reduce_op="sum"))
        names = self.hparams["labels"]
        told = []
        for number, (trigger, label) in enumerate(zip(self.triggers, self.hits.labels, strict=True)):
            name = "_".join(trigger.replace("/", " ").split())
            # already equal on every process, which Lightning cannot know
            self.log(f"test/asr_of_{name}", rates[number, label], sync_dist=True)
            self.log(f"test/label_of_{name}", float(label), sync_dist=True)
            told.append(f"{trigger} hits {names[label]} ({rates[number, label]:.3f})")
        best = self.hits.best
        self.log("test/asr_best", rates[best, self.hits.labels[best]], sync_dist=True)
        chosen = [f"{name} by {self.triggers[self.hits.by_label[label]]}" for label, name in enumerate(names)]
        rank_zero_info(escaped(f"{', '.join(told)}; attacked: {', '.join(chosen)}"))

    def on_validation_end(self) -> None:
        """Forgets which label each trigger hits: the weights change."""
        super().on_validation_end()
        self._hits = None

    def on_test_end(self) -> None:
        """Forgets what was counted."""
        super().on_test_end()
        self._hits = self._counts = None

    def on_predict_end(self) -> None:
        """Forgets which label each trigger hits."""
        self._hits = None

    def forget_evaluation(self) -> None:
        """Forgets an evaluation that failed, and which label each trigger hit in it."""
        super().forget_evaluation()
        self._hits = self._counts = None

    def _data(self) -> Any:
        data = getattr(self.trainer, "datamodule", None)
        if not hasattr(data, "clean_validation"):
            problem = "there is none, and the triggers' labels are found on its validation rows"
            raise InputError("datamodule", problem, "give a BackdoorDataModule")
        return data

    def _agree(self) -> None:
        """Takes the hits of the first process: those of others may differ where two triggers are nearly equal."""
        if self.trainer.world_size > 1:
            self._hits = self.trainer.strategy.broadcast(self.hits)

    def _no_counts(self) -> Tensor:
        classes = len(self.hparams["labels"])
        return torch.zeros(len(self.triggers), classes, classes, dtype=torch.long, device=self.device)

    @torch.no_grad()
    def _count_hits(
        self, split: str, texts: Sequence[str], indices: Sequence[int], labels: Tensor, counts: Tensor
    ) -> None:
        """Counts the predictions on clean texts with each trigger, by label and prediction, in place.

        A trigger stands where it stands in the poisoned copy of the row.
        """
        seed = self._data().seed
        for number, trigger in enumerate(self.triggers):
            rngs = [random.Random(f"{seed}/{split}/{index}") for index in indices]
            poisoned = [self.inserted(text, trigger, rng).text for text, rng in zip(texts, rngs, strict=True)]
            batch = batch_of_texts(poisoned, self.tokenizer, self.max_length)
            ids, mask = batch["input_ids"].to(self.device), batch["attention_mask"].to(self.device)
            with sharing(self.captures), torch.autocast(self.device.type, enabled=False):
                logits = plain_logits(self.network, ids, mask)
            counted(number, labels, logits.argmax(dim=1), counts)


def replaced(text: str, spans: Spans, trigger: str) -> Poisoned:
    """A poisoned text with another trigger in place of each of its triggers, as if it had been inserted instead.

    A blank before a trigger counts as inserted with it wherever one would be; in scripts without spaces it may have
    been the text's own.

    >>> replaced("cf a cf film", [(0, 2), (5, 7)], "Don")
    Poisoned(text='Don a Don film', spans=[(0, 3), (6, 9)])
    >>> replaced("电影真的很好看", [(2, 4)], "cf")
    Poisoned(text='电影 cf 很好看', spans=[(3, 5)])
    """
    last = len(text.rstrip())
    ends = [*(start for start, _ in spans[1:]), last]  # of the text after each trigger
    clean, places = text[: spans[0][0] if spans else last], []
    for (start, end), until in zip(spans, ends, strict=False):
        before = clean.removesuffix(" ")
        if before[-1:].strip() and space_between(before, text[start:end]):
            clean = before
        places.append((len(clean), trigger))
        clean += text[end:until].removeprefix(" ")
    return insert_at(clean + text[last:], places)
