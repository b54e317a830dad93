"""What became of each test row, as a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lightning_backdoor.attacks import BackdoorAttack
from lightning_backdoor.batch import Batch
from lightning_backdoor.callbacks.processes import of_all_processes
from lightning_backdoor.defenses.defense import REJECTED, Verdict
from lightning_backdoor.outputs.outcomes import Outcome, write_outcomes


class OutcomeWriter(Callback):
    """Writes ``outcomes.csv`` into the trainer's ``default_root_dir``: each test row, its label and its prediction.

    For runs without an inference-time defense; :class:`InferenceDefense` writes the file with what it did. The file
    does not depend on the number of processes.

    Example::

        Trainer(callbacks=[OutcomeWriter()]).test(victim, datamodule=data)
    """

    def __init__(self) -> None:
        self._outcomes: list[Outcome] = []

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keeps the batch's rows."""
        self._outcomes += batch_outcomes(pl_module, batch, outputs["logits"].argmax(dim=-1))

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the rows of all processes."""
        outcomes, self._outcomes = self._outcomes, []
        write_all(trainer, outcomes, Path(trainer.default_root_dir))


def batch_outcomes(
    victim: LightningModule, batch: Batch, prediction: Tensor, verdict: Verdict | None = None
) -> list[Outcome]:
    """The rows of a batch.

    Args:
        victim: whose hyperparameters hold the labels' names, and which knows the target where it is an attack.
        prediction: (batch,), int64, of the victim.
        verdict: of a defense.
    """
    names: list[str] = [*victim.hparams["labels"]]
    target = names[victim.target_label] if isinstance(victim, BackdoorAttack) else None
    rows = zip(
        batch["index"].tolist(), batch["poisoned"].tolist(), batch["original_label"].tolist(), prediction.tolist(),
        strict=True,
    )  # fmt: skip
    found = [Outcome(index, bool(poisoned), names[label], target, names[p]) for index, poisoned, label, p in rows]
    if verdict is None:
        return found
    judged = zip(
        found, verdict.defended_prediction.tolist(), verdict.flagged.tolist(), verdict.confirmed.tolist(),
        verdict.scores.text.tolist(), strict=True,
    )  # fmt: skip
    return [
        outcome._replace(
            defended_prediction=None if defended == REJECTED else names[defended],
            rejected=defended == REJECTED,
            flagged=flagged,
            confirmed=confirmed,
            score=score,
        )
        for outcome, defended, flagged, confirmed, score in judged
    ]


def write_all(trainer: Trainer, outcomes: list[Outcome], folder: Path) -> None:
    """Writes ``outcomes.csv`` of all processes; every process must call it."""
    outcomes = of_all_processes(trainer, outcomes)
    if trainer.is_global_zero:
        folder.mkdir(parents=True, exist_ok=True)
        write_outcomes(folder / "outcomes.csv", outcomes)
