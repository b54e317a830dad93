"""Texts and score histograms for Weights & Biases."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import WandbLogger
from torch import Tensor

from lightning_backdoor.token_view import ViewedText, text_html

COLUMNS = (
    "text",
    "poisoned",
    "label",
    "prediction",
    "defended_prediction",
    "flagged",
    "confirmed",
    "score",
    "spans",
    "purified_text",
    "plain_text",
)


def log_texts(
    trainer: Trainer, rows: Sequence[ViewedText], scores: Tensor, poisoned: Tensor, prefix: str = "test/"
) -> None:
    """Logs a table of texts (tokens shaded, escaped) and score histograms of clean and of poisoned rows.

    Does nothing where the trainer has no ``WandbLogger``. Call it on one process only.

    Args:
        rows: the texts of the table.
        scores: (all rows,), float32; those that are not finite, or the lowest of all, are in no bin.
        poisoned: (all rows,), 1 for poisoned rows.
        prefix: of the keys ``texts``, ``scores_clean`` and ``scores_poisoned``.
    """
    loggers = [logger for logger in trainer.loggers if isinstance(logger, WandbLogger)]
    if not loggers:
        return
    import wandb

    cells = [
        [wandb.Html(text_html(row), inject=False, data_is_not_path=True), *(_cell(row, name) for name in COLUMNS[1:])]
        for row in rows
    ]
    values = {f"{prefix}texts": wandb.Table(columns=list(COLUMNS), data=cells)}
    finite = scores.isfinite() & (scores > torch.finfo(torch.float32).min)
    scores, poisoned = scores[finite].float().cpu(), poisoned[finite].cpu()
    edges = np.histogram_bin_edges(scores.numpy(), bins=40)
    for name, kind in (("clean", 0), ("poisoned", 1)):
        of_kind = scores[poisoned == kind].numpy()
        if len(of_kind):
            counts = np.histogram(of_kind, bins=edges)  # the same bins, so that the two can be laid over each other
            values[f"{prefix}scores_{name}"] = wandb.Histogram(np_histogram=counts)
    for logger in loggers:
        logger.experiment.log(values)


def _cell(row: ViewedText, column: str) -> object:
    if column == "plain_text":
        return row["text"]
    if column == "spans":
        return str(row["spans"])
    return dict(row)[column]
