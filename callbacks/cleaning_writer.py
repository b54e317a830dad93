"""A callback that writes and logs what a data defense did to the training rows."""

from __future__ import annotations

import json
import math
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_backdoor.callbacks.output_folder import folder_of
from lightning_backdoor.data.cleaning import CleaningRecord
from lightning_backdoor.files.atomic import write_whole


class CleaningWriter(Callback):
    """Writes ``cleaning.json`` into the folder of the run when training starts, and logs its numbers.

    The folder is that of the trainer's logger, or of an :class:`OutputFolder`; without either, no file is written. The
    file holds the data module's :class:`CleaningRecord`: ``rows``, ``removed``, ``changed``, ``precision``,
    ``recall``; a share that is undefined is null; and ``model_precision`` of a defense that has it. The numbers are
    logged as ``cleaning/rows`` and so on, without undefined shares. Does nothing if no data defense cleaned the
    training rows.

    Example::

        data = BackdoorDataModule(source, data_defense=Onion(fpr=0.05))
        Trainer(callbacks=[CleaningWriter()]).fit(BadNets(), datamodule=data)
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the file and logs the numbers, on the first process."""
        data = getattr(trainer, "datamodule", None)
        record: CleaningRecord | None = getattr(data, "cleaning", None)
        if record is None or not trainer.is_global_zero:
            return
        known = {name: value for name, value in record._asdict().items() if not math.isnan(value)}
        content: dict[str, Any] = {name: known.get(name) for name in record._fields}  # JSON has no NaN
        precision = getattr(getattr(data, "data_defense", None), "model_precision", None)
        if precision is not None:
            content["model_precision"] = precision
        folder = folder_of(trainer)
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            write_whole(folder / "cleaning.json", json.dumps(content, indent=1) + "\n")
        for logger in trainer.loggers:
            logger.log_metrics({f"cleaning/{name}": value for name, value in known.items()}, step=trainer.global_step)
