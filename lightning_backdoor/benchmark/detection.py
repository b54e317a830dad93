"""AUROC and ROC curve of scores: of clean against poisoned texts, or of benign against backdoored victims."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

from lightning_backdoor.outputs.outcomes import Outcome

ScoreArray = NDArray[np.float64]


def split_scores(outcomes: Iterable[Outcome]) -> tuple[ScoreArray, ScoreArray]:
    """Scores of the clean and of the poisoned texts, (texts,) each; texts without a score and NaN are left out."""
    scores: tuple[list[float], list[float]] = ([], [])
    for outcome in outcomes:
        if outcome.score is not None and not np.isnan(outcome.score):
            scores[outcome.poisoned].append(outcome.score)
    return np.array(scores[0], dtype=np.float64), np.array(scores[1], dtype=np.float64)


def auroc(clean: ArrayLike, poisoned: ArrayLike, axis: int = -1) -> ScoreArray:
    """Share of the (poisoned, clean) pairs in which the poisoned one scores higher, ties counting half.

    Args:
        clean: (..., clean), scores; at least one.
        poisoned: (..., poisoned), scores; at least one.
        axis: axis of the scores.

    Returns:
        (...,), AUROC from 0 to 1.

    >>> float(auroc([0.0, 1.0], [1.0, 2.0]))
    0.875
    """
    clean, poisoned = np.asarray(clean, dtype=float), np.asarray(poisoned, dtype=float)
    n_clean, n_poisoned = clean.shape[axis], poisoned.shape[axis]
    ranks = rankdata(np.concatenate([clean, poisoned], axis=axis), axis=axis)
    rank_sum = np.take(ranks, range(n_clean, n_clean + n_poisoned), axis=axis).sum(axis=axis)
    return np.asarray((rank_sum - n_poisoned * (n_poisoned + 1) / 2) / (n_clean * n_poisoned))


def roc(clean: ArrayLike, poisoned: ArrayLike) -> list[tuple[float, float]]:
    """The ROC curve: (FPR, TPR) at every threshold, from none flagged to all; equal scores are flagged together.

    Points on the straight line between their neighbours are left out, which keeps the area under the curve.

    Args:
        clean: (clean texts,), scores.
        poisoned: (poisoned texts,), scores.

    Returns:
        Points of the curve; an empty list if there are no clean or no poisoned texts.

    >>> roc([0.0, 1.0, 1.0], [1.0, 2.0, 3.0])
    [(0.0, 0.0), (0.0, 0.6666666666666666), (0.6666666666666666, 1.0), (1.0, 1.0)]
    """
    scores = [np.asarray(side, dtype=float) for side in (clean, poisoned)]
    n_clean, n_poisoned = map(len, scores)
    if not n_clean or not n_poisoned:
        return []
    values, ranks = np.unique(np.concatenate(scores), return_inverse=True)
    flagged = [
        np.concatenate([[0], np.bincount(side, minlength=len(values))[::-1].cumsum()])
        for side in (ranks[:n_clean], ranks[n_clean:])
    ]
    x, y = np.diff(flagged[0]), np.diff(flagged[1])
    bends = np.flatnonzero(x[:-1] * y[1:] != x[1:] * y[:-1]) + 1
    corners = [0, *bends.tolist(), len(values)]
    return [(float(flagged[0][i] / n_clean), float(flagged[1][i] / n_poisoned)) for i in corners]
