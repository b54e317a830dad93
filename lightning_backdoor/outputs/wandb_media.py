"""Texts and scores as Weights & Biases shows them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from lightning_backdoor.outputs.token_view import ViewedText, text_html

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


def texts_table(rows: Sequence[ViewedText]) -> Any:
    """A ``wandb.Table`` of texts, their tokens shaded, escaped."""
    import wandb

    cells = [
        [wandb.Html(text_html(row), inject=False, data_is_not_path=True), *(_cell(row, name) for name in COLUMNS[1:])]
        for row in rows
    ]
    return wandb.Table(columns=list(COLUMNS), data=cells)


def score_histograms(scores: ArrayLike, poisoned: ArrayLike) -> dict[str, Any]:
    """A ``wandb.Histogram`` of the clean and one of the poisoned rows, where there are any, on the same bins.

    Args:
        scores: (rows,); those that are not finite, or the lowest of float32, are in no bin.
        poisoned: (rows,), 1 or true for poisoned rows.

    Returns:
        By the names ``scores_clean`` and ``scores_poisoned``.
    """
    import wandb

    of_rows, is_poisoned = np.asarray(scores, dtype=float), np.asarray(poisoned, dtype=bool)
    shown = np.isfinite(of_rows) & (of_rows > np.finfo(np.float32).min)
    edges = np.histogram_bin_edges(of_rows[shown], bins=40)
    found = {}
    for name, of_kind in (("clean", of_rows[shown & ~is_poisoned]), ("poisoned", of_rows[shown & is_poisoned])):
        if len(of_kind):
            counts = np.histogram(of_kind, bins=edges)  # the same bins, so that the two can be laid over each other
            found[f"scores_{name}"] = wandb.Histogram(np_histogram=counts)
    return found


def _cell(row: ViewedText, column: str) -> object:
    if column == "plain_text":
        return row["text"]
    if column == "spans":
        return str(row["spans"])
    return dict(row)[column]
