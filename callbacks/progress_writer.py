"""A callback that writes a line per minute about a run whose progress no terminal shows."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_backdoor.outputs.progress import ProgressLines


class ProgressWriter(Callback):
    """Writes how many batches are done to standard error, at most once a minute, in the first process alone.

    Lightning's progress bar shows nothing before the end where standard error is a file.
    """

    def __init__(self) -> None:
        self._lines: dict[str, ProgressLines] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begins to count the batches of all epochs."""
        per_epoch, epochs = float(trainer.num_training_batches), trainer.max_epochs or -1
        limits = [per_epoch * epochs] if epochs > 0 else []
        limits += [float(trainer.max_steps)] if trainer.max_steps > 0 else []
        self._begin(trainer, "training", min(limits, default=float("inf")), trainer.fit_loop.total_batch_idx + 1)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Counts a batch."""
        self._advance("training")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the last line."""
        self._end("training")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begins to count the batches of all loaders."""
        if not trainer.sanity_checking:
            self._begin(trainer, "validating", float(sum(trainer.num_val_batches)))

    def on_validation_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Counts a batch."""
        self._advance("validating")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the last line."""
        self._end("validating")

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begins to count the batches of all loaders."""
        self._begin(trainer, "testing", float(sum(trainer.num_test_batches)))

    def on_test_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Counts a batch."""
        self._advance("testing")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the last line."""
        self._end("testing")

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begins to count the batches of all loaders."""
        self._begin(trainer, "predicting", float(sum(trainer.num_predict_batches)))

    def on_predict_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Counts a batch."""
        self._advance("predicting")

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the last line."""
        self._end("predicting")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Counts no further: the sanity check of the next fit also validates, and is not told."""
        self._lines.clear()

    def _begin(self, trainer: Trainer, doing: str, total: float, done: int = 0) -> None:
        if trainer.is_global_zero:
            known = total != float("inf")
            self._lines[doing] = ProgressLines(doing, int(total) if known else None, "batches", done)

    def _advance(self, doing: str) -> None:
        if doing in self._lines:
            self._lines[doing].advance(1)

    def _end(self, doing: str) -> None:
        if doing in self._lines:
            self._lines.pop(doing).finish()
