"""Logging a table of texts and score histograms to Weights & Biases."""

from __future__ import annotations

from collections.abc import Sequence

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import WandbLogger
from torch import Tensor

from lightning_backdoor.outputs.token_view import ViewedText
from lightning_backdoor.outputs.wandb_media import score_histograms, texts_table


def log_texts(
    trainer: Trainer, rows: Sequence[ViewedText], scores: Tensor, poisoned: Tensor, prefix: str = "test/"
) -> None:
    """Logs a table of texts (tokens shaded, escaped) and score histograms of clean and of poisoned rows.

    Does nothing if the trainer has no ``WandbLogger``. Call it on one process only.

    Args:
        trainer: the trainer whose W&B loggers are used.
        rows: the texts of the table.
        scores: (all rows,), float32; scores that are not finite, or are the lowest float32, are left out.
        poisoned: (all rows,), 1 for poisoned rows.
        prefix: prefix of the keys ``texts``, ``scores_clean`` and ``scores_poisoned``.
    """
    loggers = [logger for logger in trainer.loggers if isinstance(logger, WandbLogger)]
    if not loggers:
        return
    values = {"texts": texts_table(rows), **score_histograms(scores.float().cpu().numpy(), poisoned.cpu().numpy())}
    for logger in loggers:
        logger.experiment.log({f"{prefix}{name}": value for name, value in values.items()})
