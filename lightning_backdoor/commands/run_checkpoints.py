"""The checkpoints of a run: which are kept while it is trained, and which when it is complete."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, Timer

from lightning_backdoor.commands.run_folder import CHECKPOINTS

#: parts of a checkpoint from which training goes on, and which nothing else needs; twice as large as the weights.
OF_TRAINING = ("optimizer_states", "lr_schedulers")


def checkpoint_callbacks(
    model: LightningModule,
    data: LightningDataModule,
    folder: Path,
    validated: bool,
    callbacks: Sequence[Callback] = (),
) -> tuple[BestCheckpoint, RunCheckpoint]:
    """The callbacks that keep ``best.ckpt`` and ``last.ckpt``, in this order.

    Args:
        model: the model, whose attribute ``selected_by`` is the metric that selects the best epoch and ``max`` or
            ``min``.
        data: the data module; if it trains on trusted rows, which validation also reads, the last epoch is kept as the
            best.
        folder: the folder of the checkpoints.
        validated: whether validation runs; without it, the best checkpoint is the last one.
        callbacks: the trainer's other callbacks; one that has ``selected_by``, as a training-time defense that acts
            late in training may, decides instead of the model, unless it is ``of_the_attacker`` and the user trains.
    """
    users_phase = getattr(model, "users_phase", False)
    acting = (callback for callback in callbacks if not (users_phase and getattr(callback, "of_the_attacker", False)))
    decides = next((callback for callback in acting if getattr(callback, "selected_by", None)), model)
    metric, mode = getattr(decides, "selected_by", (None, "max"))  # a module without it is rejected later
    if getattr(data, "train_on", "train") == "trusted":
        metric, mode = "epoch", "max"
    best = BestCheckpoint(
        folder,
        filename="best",
        monitor=metric if validated else None,
        mode=mode,  # the first of epochs with equal values is kept
        enable_version_counter=False,
    )
    # save_last would write last.ckpt only together with a new best.ckpt. This one comes after the best, whose state it
    # stores, and has the other mode, since without a metric nothing else distinguishes the states of the two
    last = RunCheckpoint(folder, filename="last", mode="min" if mode == "max" else "max", enable_version_counter=False)
    return best, last


def remove_last(trainer: Trainer, folder: Path) -> None:
    """Removes the checkpoints from which training would go on, unless a time limit has ended it early.

    Args:
        trainer: the trainer, whose fit has ended.
        folder: the run's folder.
    """
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    if any(isinstance(callback, Timer) and (callback.time_remaining() or 1) <= 0 for callback in callbacks):
        return
    for path in (Path(folder, CHECKPOINTS["last"]), *folder.glob(CHECKPOINTS["hpc"])):
        path.unlink(missing_ok=True)


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


class BestCheckpoint(RunCheckpoint):
    """A :class:`RunCheckpoint` whose file has no state of the optimizer, since training never goes on from it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._saves = False

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Leaves the state of the optimizer out of this callback's own file."""
        if self._saves:
            for name in OF_TRAINING:
                checkpoint.pop(name, None)

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:  # private: lightning 2.6
        self._saves = True
        try:
            super()._save_checkpoint(trainer, filepath)
        finally:
            self._saves = False
