"""The evaluation half of the victim: forward pass, metrics, and the outputs passed to callbacks."""

from __future__ import annotations

import time
from collections.abc import Hashable
from typing import Any, TypedDict

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from lightning_backdoor.batch import Batch
from lightning_backdoor.metrics import CleanAccuracy
from lightning_backdoor.models.captures import Captures, plain_logits, recorded_use, sharing
from lightning_backdoor.models.divergence import count_not_finite, diverged_victim
from lightning_backdoor.models.fine_tuning import FineTunedNetwork

STAGES = ("val", "test")


class Evaluated(TypedDict):
    """The output of an evaluation step, for callbacks.

    Attributes:
        logits: (batch, classes), the victim's logits.
        seconds: duration of the plain forward pass, also where its result was kept from an earlier one.
        passes: keys of the pass in the victim's captures.
    """

    logits: Tensor
    seconds: float
    passes: set[Hashable]


def now(device: torch.device) -> float:
    """The time in seconds, read after a GPU has finished its pending work."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()


class EvaluatedClassifier(FineTunedNetwork):
    """Base of :class:`lightning_backdoor.victim.TextClassifier` that validates, tests and predicts.

    Logits that are NaN or infinite end an evaluation: at once with one process, otherwise at its end, on all processes.
    Evaluation is in the precision of the weights: mixed precision concerns training alone.

    Attributes:
        captures: during an evaluation, what passes of the network over its batches gave; None otherwise.
        given_captures: captures of earlier evaluations of the same weights, which the next one goes on with.
    """

    def __init__(self) -> None:
        super().__init__()
        self._texts = 0
        self._diverged_texts: Tensor | None = None
        self.captures: Captures | None = None
        self.given_captures: Captures | None = None

    def make_metrics(self) -> nn.ModuleDict:
        """The metrics of one stage by logged name; each has ``update(prediction, batch)``."""
        return nn.ModuleDict({"cacc": CleanAccuracy()})

    def build_metrics(self) -> None:
        """Makes one set of metrics per stage, so that validation and test never share state."""
        self.stage_metrics = nn.ModuleDict({stage: self.make_metrics() for stage in STAGES})

    def forward(self, batch: Batch) -> Tensor:
        """Logits, (batch, classes)."""
        return plain_logits(self.network, batch["input_ids"], batch["attention_mask"], keep_states=True)

    def on_validation_start(self) -> None:
        """Begins to count, and to keep what passes give: the weights do not change until the evaluation ends."""
        self._begin("val")

    def on_test_start(self) -> None:
        """Begins to count, and to keep what passes give."""
        self._begin("test")

    def on_predict_start(self) -> None:
        """Forgets what an evaluation that failed has left."""
        self.forget_evaluation()

    def on_validation_end(self) -> None:
        """Forgets what passes gave."""
        self._end_captures()

    def on_test_end(self) -> None:
        """Forgets what passes gave."""
        self._end_captures()

    def _begin(self, stage: str) -> None:
        self.forget_evaluation()
        for metric in self._metrics(stage).values():
            metric.reset()
        self.captures = self.given_captures or Captures()
        self.captures.begin(self.network, lasting=self.given_captures is not None)

    def forget_evaluation(self) -> None:
        """Forgets an evaluation that failed, for which Lightning calls no hook of its end; called as each begins."""
        self._diverged_texts, self._texts, self.captures = None, 0, None

    def _end_captures(self) -> None:
        if self.captures is not None:
            self.captures.end()
        self.captures = None

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> Evaluated:
        """Updates the validation metrics; returns an output for callbacks."""
        return self._evaluate("val", batch)

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> Evaluated:
        """Updates the test metrics; returns an output for callbacks."""
        return self._evaluate("test", batch)

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """The columns of the batch, with the victim's logits and predictions."""
        logits = self._logits(batch).float()
        self._count(logits)
        return {**batch, "logits": logits, "prediction": logits.argmax(dim=-1)}

    def _evaluate(self, stage: str, batch: Batch) -> Evaluated:
        started = now(self.device)
        with sharing(self.captures), recorded_use() as used:
            logits = self._logits(batch)
        seconds = now(self.device) - started + used.seconds
        self._count(logits)
        prediction = logits.argmax(dim=-1)
        for metric in self._metrics(stage).values():
            metric.update(prediction, batch)
        return Evaluated(logits=logits, seconds=seconds, passes=used.keys)

    def _logits(self, batch: Batch) -> Tensor:
        """Logits in the precision of the weights, also where the trainer's is mixed."""
        with torch.autocast(self.device.type, enabled=False):
            logits: Tensor = self(batch)
        return logits

    def _count(self, logits: Tensor) -> None:
        number = count_not_finite(logits)
        self._diverged_texts = number if self._diverged_texts is None else self._diverged_texts + number
        self._texts += len(logits)
        if self._trainer is None or self._trainer.world_size == 1:
            self.check_logits()

    def check_logits(self) -> None:
        """Checks all logits since the last call; every process must call it.

        Raises:
            Diverged: on any process, a logit was NaN or infinite.
        """
        number, texts = self._diverged_texts, self._texts
        self._diverged_texts, self._texts = None, 0
        if self._trainer is not None and self._trainer.world_size > 1:
            both = torch.tensor([0 if number is None else int(number), texts], dtype=torch.float32, device=self.device)
            number, texts = self._trainer.strategy.reduce(both, reduce_op="sum").long()
        if number is not None and int(number):
            raise diverged_victim(int(number), int(texts))

    def _metrics(self, stage: str) -> dict[str, Metric]:
        return dict(self.stage_metrics[stage].items())  # type: ignore[operator]

    def on_validation_epoch_end(self) -> None:
        """Logs the validation metrics as ``val/...``.

        Raises:
            Diverged: see :meth:`check_logits`.
        """
        self.check_logits()
        self._log_metrics("val")

    def on_test_epoch_end(self) -> None:
        """Logs the test metrics as ``test/...``.

        Raises:
            Diverged: see :meth:`check_logits`.
        """
        self.check_logits()
        self._log_metrics("test")

    def _log_metrics(self, stage: str) -> None:
        for name, metric in self._metrics(stage).items():
            self.log(f"{stage}/{name}", metric, prog_bar=stage == "val")
