"""The evaluation half of the victim: forward pass, metrics, and the outputs passed to callbacks."""

from __future__ import annotations

import time
from typing import Any, TypedDict

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from lightning_backdoor.batch import Batch
from lightning_backdoor.metrics import CleanAccuracy
from lightning_backdoor.models.divergence import count_not_finite, diverged_victim
from lightning_backdoor.models.fine_tuning import FineTunedNetwork

STAGES = ("val", "test")


class Evaluated(TypedDict):
    """The output of an evaluation step, for callbacks.

    Attributes:
        logits: (batch, classes), the victim's logits.
        seconds: duration of the plain forward pass.
    """

    logits: Tensor
    seconds: float


def now(device: torch.device) -> float:
    """The time in seconds, read after a GPU has finished its pending work."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()


class EvaluatedClassifier(FineTunedNetwork):
    """Base of :class:`lightning_backdoor.victim.TextClassifier` that validates, tests and predicts.

    Logits that are NaN or infinite end an evaluation: at once with one process, otherwise at its end, on all processes.
    Evaluation is in the precision of the weights: mixed precision concerns training alone.
    """

    def __init__(self) -> None:
        super().__init__()
        self._texts = 0
        self._diverged_texts: Tensor | None = None

    def make_metrics(self) -> nn.ModuleDict:
        """The metrics of one stage by logged name; each has ``update(prediction, batch)``."""
        return nn.ModuleDict({"cacc": CleanAccuracy()})

    def build_metrics(self) -> None:
        """Makes one set of metrics per stage, so that validation and test never share state."""
        self.stage_metrics = nn.ModuleDict({stage: self.make_metrics() for stage in STAGES})

    def forward(self, batch: Batch) -> Tensor:
        """Logits, (batch, classes)."""
        logits: Tensor = self.network(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        return logits

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
        logits = self._logits(batch)
        seconds = now(self.device) - started
        self._count(logits)
        prediction = logits.argmax(dim=-1)
        for metric in self._metrics(stage).values():
            metric.update(prediction, batch)
        return Evaluated(logits=logits, seconds=seconds)

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
