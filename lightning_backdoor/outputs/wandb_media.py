"""Tables of texts and histograms of scores for Weights & Biases."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from lightning_backdoor.outputs.scores import can_be_drawn
from lightning_backdoor.outputs.token_view import ViewedText, text_html

#: columns of the table of texts.
TEXT_COLUMNS = (
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
    """A ``wandb.Table`` of texts with their labels, predictions and scores; tokens are shaded by score.

    Texts are escaped, so markup in them is shown and not interpreted.
    """
    import wandb

    cells = [
        [
            wandb.Html(text_html(row), inject=False, data_is_not_path=True),
            *(_cell(row, name) for name in TEXT_COLUMNS[1:]),
        ]
        for row in rows
    ]
    return wandb.Table(columns=list(TEXT_COLUMNS), data=cells)


def score_histograms(scores: ArrayLike, poisoned: ArrayLike) -> dict[str, Any]:
    """Makes a ``wandb.Histogram`` of the scores of clean rows and one of poisoned rows, with the same bins.

    Args:
        scores: (rows,); those that :func:`lightning_backdoor.outputs.scores.can_be_drawn` refuses are left out.
        poisoned: (rows,), 1 or true for poisoned rows.

    Returns:
        The histograms under ``scores_clean`` and ``scores_poisoned``; a key is absent where there are no such rows.
    """
    import wandb

    values, is_poisoned = np.asarray(scores, dtype=float), np.asarray(poisoned, dtype=bool)
    shown = can_be_drawn(values)
    edges = np.histogram_bin_edges(values[shown], bins=40)
    histograms = {}
    for name, selected in (("clean", shown & ~is_poisoned), ("poisoned", shown & is_poisoned)):
        if selected.any():
            counts = np.histogram(values[selected], bins=edges)
            histograms[f"scores_{name}"] = wandb.Histogram(np_histogram=counts)
    return histograms


def _cell(row: ViewedText, column: str) -> object:
    if column == "plain_text":
        return row["text"]
    if column == "spans":
        return str(row["spans"])
    return dict(row)[column]
