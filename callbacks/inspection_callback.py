"""A callback that runs an inspection, a defense that judges the whole model, in the test of a victim."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_backdoor.batch import unlabelled
from lightning_backdoor.callbacks.failures import FailsAlone
from lightning_backdoor.callbacks.lent_seed import LendsSeed
from lightning_backdoor.callbacks.output_folder import folder_of
from lightning_backdoor.callbacks.shared import (
    check_reference,
    check_unique,
    data_module,
    learn_and_calibrate,
    name_prefix,
    text_classifier,
)
from lightning_backdoor.data import BackdoorDataModule
from lightning_backdoor.defenses.inspection import Inspection, ModelVerdict
from lightning_backdoor.errors import InputError
from lightning_backdoor.files.atomic import write_whole
from lightning_backdoor.files.names import check_name
from lightning_backdoor.models.captures import sharing
from lightning_backdoor.models.precision import evaluation_precision
from lightning_backdoor.victim import TextClassifier


class InspectionCallback(FailsAlone, LendsSeed):
    """Inspects the victim in a test, and logs its suspicion score.

    The inspection learns from the clean reference or trusted rows (``learns_from``), is calibrated on the clean
    threshold rows, and judges the model by the trusted rows (selection and reference) and a stream of all test rows,
    clean and poisoned, without labels and flags. Every process uses the same rows.

    Logged: ``test/inspection_score``, and ``test/inspection_p_value`` where the evidence has a ``p_value``. Written to
    ``inspection.json`` in the folder of the trainer's logger or of an :class:`OutputFolder`, if there is either:
    ``score``, ``suspected_label`` (a label's name or null) and ``evidence``. The undefended evaluation is not changed.

    Args:
        inspection: the inspection to run.
        name: prefix of logged names and of the written file; required if several inspections are attached.

    Raises:
        InputError: the name cannot be that of a folder, two inspections log under the same name, the data module is not
            a :class:`BackdoorDataModule`, or the inspection cannot learn from its clean rows.

    Example::

        trainer = Trainer(callbacks=[InspectionCallback(FlaggedShare())])
        trainer.test(victim, datamodule=data)
    """

    def __init__(self, inspection: Inspection, name: str = "") -> None:
        check_name(name)
        self.inspection = inspection
        self.name = name

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Checks names and, also before training, clean rows; gives the inspection the run's seed if it has no seed."""
        check_unique([callback.name for callback in attached_inspections(trainer)], "inspections")
        if stage in ("fit", "test"):
            self.check_reference(needed_data(trainer))
        self.lend_seed(self.inspection)

    def check_reference(self, data: BackdoorDataModule) -> None:
        """Checks, before a victim is trained, that the inspection can learn from the clean rows of a data module.

        Raises:
            InputError: there are too few rows, or rows of too few classes.
        """
        check_reference(self.inspection, data)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Inspects the victim, logs the score and writes the file."""
        self.failure = None
        victim = text_classifier(pl_module, type(self).__name__)
        verdict = None
        with self.failing_alone(trainer):
            verdict = self._inspect(trainer, victim)
        if self.failed_anywhere(trainer):
            return
        # devices may differ in the last digits: all processes take the verdict of the first
        verdict = trainer.strategy.broadcast(verdict)
        assert verdict is not None
        with self.failing_alone(trainer):
            self._report(trainer, victim, verdict)

    def _inspect(self, trainer: Trainer, victim: TextClassifier) -> ModelVerdict:
        data = needed_data(trainer)
        with torch.inference_mode(False):  # buffers moved in inference mode could not be written later
            self.inspection.to(victim.device)
        learn_and_calibrate(self.inspection, trainer, victim, data)
        on_device = trainer.strategy.batch_to_device
        trusted = (on_device(batch) for batch in data.trusted_dataloader())
        # flags are hidden after the transfer: some attacks write their trigger there, into rows that are flagged
        stream = (unlabelled(on_device(batch)) for batch in data.stream_dataloader())
        with evaluation_precision(trainer), sharing(victim.captures):
            return self.inspection.inspect(victim, trusted, stream)

    def _report(self, trainer: Trainer, victim: TextClassifier, verdict: ModelVerdict) -> None:
        if not math.isfinite(verdict.score):
            problem = f"the score of the model is {verdict.score}"
            raise InputError(type(self.inspection).__name__, problem, "see that the victim has not diverged")
        numbers = {"inspection_score": verdict.score}
        if "p_value" in verdict.evidence:
            numbers["inspection_p_value"] = float(verdict.evidence["p_value"])
        for name, value in numbers.items():
            victim.log(f"test/{name_prefix(self.name)}{name}", value, sync_dist=True, reduce_fx="max")
        folder = folder_of(trainer)
        if trainer.is_global_zero and folder is not None:
            write_verdict(folder / self.name, verdict, victim.hparams["labels"])


def needed_data(trainer: Trainer) -> BackdoorDataModule:
    """The trainer's data module.

    Raises:
        InputError: it is not a :class:`BackdoorDataModule`.
    """
    data = data_module(trainer)
    if data is None:
        raise InputError("datamodule", "an inspection needs the clean rows of a BackdoorDataModule", "give one")
    return data


def write_verdict(folder: Path, verdict: ModelVerdict, labels: Sequence[str]) -> None:
    """Writes ``inspection.json`` into a folder, which is created.

    Args:
        folder: the folder to write to.
        verdict: verdict of an inspection; evidence numbers that are not finite become null.
        labels: names of the classes.
    """
    evidence = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in verdict.evidence.items()
    }
    suspected = None if verdict.suspected_label is None else labels[verdict.suspected_label]
    content = {"score": verdict.score, "suspected_label": suspected, "evidence": evidence}
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "inspection.json", json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def attached_inspections(trainer: Trainer) -> list[InspectionCallback]:
    """The inspections among a trainer's callbacks."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return [callback for callback in callbacks if isinstance(callback, InspectionCallback)]
