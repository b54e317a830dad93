"""A callback that writes the predictions of ``predict`` to a file."""

from __future__ import annotations

import json
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_backdoor.callbacks.output_folder import folder_of
from lightning_backdoor.callbacks.processes import check_logits_of_all, of_all_processes


class PredictionWriter(Callback):
    """Writes ``predictions.jsonl`` into the folder of the run: one line per row, clean rows first.

    The folder is that of the trainer's logger, or of an :class:`OutputFolder`; without either, nothing is written. Rows
    that carry a part of the trigger come last, with ``negative`` true. The file does not depend on the number of
    processes.

    Example::

        Trainer(callbacks=[PredictionWriter()]).predict(victim, datamodule=data, return_predictions=False)
    """

    def __init__(self) -> None:
        self._rows: list[dict[str, Any]] = []

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forgets the rows of a prediction that failed."""
        self._rows = []

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keeps the rows of the batch."""
        names = pl_module.hparams["labels"]
        for i, text in enumerate(batch["text"]):
            self._rows.append(
                {
                    "index": int(batch["index"][i]),
                    "poisoned": bool(batch["poisoned"][i]),
                    "negative": bool(batch["negative"][i]),
                    "text": text,
                    "label": names[int(batch["original_label"][i])],
                    "prediction": names[int(outputs["prediction"][i])],
                    "logits": outputs["logits"][i].tolist(),
                }
            )

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the rows of all processes, sorted."""
        check_logits_of_all(pl_module)
        rows, self._rows = self._rows, []
        rows = of_all_processes(trainer, rows)
        folder = folder_of(trainer)
        if trainer.is_global_zero and folder is not None:
            rows.sort(key=lambda row: (row["negative"], row["poisoned"], row["index"], row["text"]))
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / "predictions.jsonl").open("w", encoding="utf-8") as file:
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
