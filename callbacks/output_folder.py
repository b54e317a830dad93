"""The folder that the callbacks of a run write to: the logger's, or a folder that is given."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import Logger


class OutputFolder(Callback):
    """Makes the callbacks of a run write their files into a folder, instead of the folder of the trainer's logger.

    Without this callback, outcomes, texts, predictions and other files are written into the folder of the trainer's
    first logger that has one; without such a logger, no file is written.

    Args:
        folder: the folder to write to; it is created once something is written.

    Example::

        Trainer(logger=False, callbacks=[InferenceDefense(Strip()), OutputFolder("results")])
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)


def folder_of(trainer: Trainer) -> Path | None:
    """The folder that callbacks write to; None if nothing is to be written. See :class:`OutputFolder`."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    given = [callback.folder for callback in callbacks if isinstance(callback, OutputFolder)]
    logged = (folder for logger in trainer.loggers if (folder := _folder_of_logger(logger)) is not None)
    return given[0] if given else next(logged, None)


def _folder_of_logger(logger: Logger) -> Path | None:
    """The folder of a logger's run, as Lightning's ``ModelCheckpoint`` finds it; None if the logger has none."""
    if isinstance(logger.log_dir, str):
        return Path(logger.log_dir)
    if logger.save_dir is None:
        return None
    version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
    return Path(logger.save_dir, str(logger.name), version)
