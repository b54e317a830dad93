"""The callbacks that a command attaches in addition to the callbacks in its options."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningDataModule, LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_backdoor.callbacks import (
    CleaningWriter,
    InferenceDefense,
    OutcomeWriter,
    OutputFolder,
    PredictionWriter,
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
    return [RunLabels(), OutputFolder(folder), *of_command[command]]


def checkpoint_callbacks(
    model: LightningModule, data: LightningDataModule, folder: Path, validated: bool
) -> list[ModelCheckpoint]:
    """The callbacks that keep ``best.ckpt`` and ``last.ckpt``, in this order.

    Args:
        model: the model, whose attribute ``selected_by`` is the metric that selects the best epoch and ``max`` or
            ``min``.
        data: the data module; if it trains on trusted rows, which validation also reads, the last epoch is kept as the
            best.
        folder: the folder of the checkpoints.
        validated: whether validation runs; without it, the best checkpoint is the last one.
    """
    metric, mode = getattr(model, "selected_by", (None, "max"))  # a module without it is rejected later
    if getattr(data, "train_on", "train") == "trusted":
        metric, mode = "epoch", "max"
    best = RunCheckpoint(
        folder,
        filename="best",
        monitor=metric if validated else None,
        mode=mode,  # the first of epochs with equal values is kept
        enable_version_counter=False,
    )
    # save_last would write last.ckpt only together with a new best.ckpt. This one comes after the best, whose state it
    # stores, and has the other mode, since without a metric nothing else distinguishes the states of the two
    last = RunCheckpoint(folder, filename="last", mode="min" if mode == "max" else "max", enable_version_counter=False)
    return [best, last]


class RunCheckpoint(ModelCheckpoint):
    """A :class:`ModelCheckpoint` that keeps track of its files when a run is resumed in another folder.

    Lightning records absolute paths, and forgets the best score so far where the folder has another one.
    """

    @property
    def state_key(self) -> str:
        """The key of Lightning's own class, under which checkpoints of version 0.1.0 hold the state."""
        return super().state_key.replace(type(self).__qualname__, ModelCheckpoint.__qualname__, 1)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the state; files that moved together with the checkpoint get their paths in this folder."""
        before, here = state_dict.get("dirpath"), self.dirpath
        if before and here and str(before) != str(here):
            moved = {
                name: self._moved(value) if name.endswith("_path") else value for name, value in state_dict.items()
            }
            best = {self._moved(path): score for path, score in state_dict.get("best_k_models", {}).items()}
            state_dict = {**moved, "dirpath": here, "best_k_models": best}
        super().load_state_dict(state_dict)

    def _moved(self, path: str) -> str:
        """The file of the same name in this folder, if there is one."""
        here = Path(self.dirpath or "", Path(path).name)
        return str(here) if path and here.is_file() else path
