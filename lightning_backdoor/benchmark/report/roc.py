"""The ROC curve of a detector."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike


def roc(clean: ArrayLike, poisoned: ArrayLike) -> list[tuple[float, float]]:
    """False and true positive rate at every threshold, from none flagged to all; equal scores are flagged together.

    Points on a straight line between others are left out, so that the area below stays what it is.

    Args:
        clean: (clean texts,), their scores.
        poisoned: (poisoned texts,), theirs.

    Returns:
        Nothing where either kind is missing.

    >>> roc([0.0, 1.0, 1.0], [1.0, 2.0, 3.0])
    [(0.0, 0.0), (0.0, 0.6666666666666666), (0.6666666666666666, 1.0), (1.0, 1.0)]
    """
    scores = [np.asarray(kind, dtype=float) for kind in (clean, poisoned)]
    n_clean, n_poisoned = map(len, scores)
    if not n_clean or not n_poisoned:
        return []
    values, among = np.unique(np.concatenate(scores), return_inverse=True)
    flagged = [
        np.concatenate([[0], np.bincount(kind, minlength=len(values))[::-1].cumsum()])
        for kind in (among[:n_clean], among[n_clean:])
    ]
    x, y = np.diff(flagged[0]), np.diff(flagged[1])
    bends = np.flatnonzero(x[:-1] * y[1:] != x[1:] * y[:-1]) + 1
    corners = [0, *bends.tolist(), len(values)]
    return [(float(flagged[0][i] / n_clean), float(flagged[1][i] / n_poisoned)) for i in corners]
