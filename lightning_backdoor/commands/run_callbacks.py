"""The callbacks that a command attaches in addition to the callbacks in its options."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch import Callback, LightningModule

from lightning_backdoor.callbacks import (
    CleaningWriter,
    InferenceDefense,
    OutcomeWriter,
    OutputFolder,
    PredictionWriter,
    ProgressWriter,
    RunLabels,
)
from lightning_backdoor.victim import TextClassifier


def command_callbacks(command: str, model: LightningModule, given: Sequence[Callback], folder: Path) -> list[Callback]:
    """The callbacks that a command adds, without checkpoint callbacks.

    Args:
        command: ``fit``, ``validate``, ``test`` or ``predict``.
        model: the victim, or the module of another training.
        given: the callbacks in the options.
        folder: the folder that the command writes to.
    """
    # an InferenceDefense writes the outcomes itself, with the defended predictions
    defended = any(isinstance(callback, InferenceDefense) for callback in given)
    outcomes: list[Callback] = [OutcomeWriter()] if isinstance(model, TextClassifier) and not defended else []
    of_command: dict[str, list[Callback]] = {
        "fit": [CleaningWriter()],
        "validate": [],
        "test": outcomes,
        "predict": [PredictionWriter()],
    }
    progress: list[Callback] = [] if sys.stderr.isatty() else [ProgressWriter()]
    return [RunLabels(), OutputFolder(folder), *progress, *of_command[command]]
