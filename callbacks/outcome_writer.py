"""A callback that writes the label and prediction of each test row to a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lightning_backdoor.attacks import BackdoorAttack
from lightning_backdoor.batch import Batch
from lightning_backdoor.callbacks.output_folder import folder_of
from lightning_backdoor.callbacks.processes import check_logits_of_all, of_all_processes
from lightning_backdoor.defenses.defense import REJECTED, Verdict
from lightning_backdoor.metrics.targets import targets_of
from lightning_backdoor.outputs.outcomes import Outcome, write_outcomes


class OutcomeWriter(Callback):
    """Writes ``outcomes.csv``, the label and prediction of each test row, into the folder of the run.

    The folder is that of the trainer's logger, or of an :class:`OutputFolder`; without either, nothing is written. For
    runs without an inference-time defense; :class:`InferenceDefense` writes the file with the defended predictions. The
    file does not depend on the number of processes. Rows that carry a part of the trigger are not in it.

    Example::

        Trainer(callbacks=[OutcomeWriter()]).test(victim, datamodule=data)

    Attributes:
        outcomes: the outcome of each row of the last test that this process has seen.
    """

    def __init__(self) -> None:
        self.outcomes: list[Outcome] = []

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forgets the outcomes of an earlier test."""
        self.outcomes = []

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keeps the outcomes of the batch."""
        self.outcomes += batch_outcomes(pl_module, batch, outputs["logits"].argmax(dim=-1))

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the outcomes of all processes."""
        check_logits_of_all(pl_module)
        write_all(trainer, self.outcomes, folder_of(trainer))


def batch_outcomes(
    victim: LightningModule, batch: Batch, prediction: Tensor, verdict: Verdict | None = None
) -> list[Outcome]:
    """The outcomes of the clean and poisoned rows of a batch.

    Args:
        victim: the victim, whose hyperparameters contain the label names; an attack knows its targets.
        batch: the rows; rows that carry a part of the trigger are skipped.
        prediction: (batch,), int64, the victim's predictions.
        verdict: verdict of an inference-time defense, if there is one.
    """
    names: list[str] = [*victim.hparams["labels"]]
    of_rows = (batch["index"], batch["poisoned"], batch["original_label"], _targets(victim, batch), prediction)
    outcomes = [
        Outcome(index, bool(poisoned), names[label], None if target < 0 else names[target], names[predicted])
        for index, poisoned, label, target, predicted in zip(*(column.tolist() for column in of_rows), strict=True)
    ]
    negative = batch["negative"].tolist()
    if verdict is None:
        return [outcome for outcome, skipped in zip(outcomes, negative, strict=True) if not skipped]
    columns = (verdict.defended_prediction, verdict.flagged, verdict.confirmed, verdict.scores.text)
    judged = zip(outcomes, negative, *(column.tolist() for column in columns), strict=True)
    return [
        outcome._replace(
            defended_prediction=None if defended == REJECTED else names[defended],
            rejected=defended == REJECTED,
            flagged=flagged,
            confirmed=confirmed,
            score=score,
        )
        for outcome, skipped, defended, flagged, confirmed, score in judged
        if not skipped
    ]


def _targets(victim: LightningModule, batch: Batch) -> Tensor:
    """The label that the attack wants for each row, which poisoned rows have; -1 where it wants none, or several."""
    labels = batch["original_label"]
    targets = [aim.target for aim in victim.aims] if isinstance(victim, BackdoorAttack) else []
    wanted = targets_of(labels, targets)[0] if len(targets) == 1 else torch.full_like(labels, -1)
    return batch["label"].where(batch["poisoned"], wanted) if targets else wanted


def write_all(trainer: Trainer, outcomes: list[Outcome], folder: Path | None) -> None:
    """Writes the outcomes of all processes to ``outcomes.csv`` in a folder, if there is one; all processes call it."""
    outcomes = of_all_processes(trainer, outcomes)
    if trainer.is_global_zero and folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        write_outcomes(folder / "outcomes.csv", outcomes)
