"""Scores of texts: which ones a histogram can show."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

#: the largest float32 number; with either sign it stands for an infinite score in files, since JSON has no infinity.
STANDS_FOR_INFINITE = float(np.finfo(np.float32).max)


def can_be_drawn(scores: ArrayLike) -> NDArray[np.bool_]:
    """Which scores a histogram can show beside others.

    Args:
        scores: (rows,).

    Returns:
        (rows,), false for NaN and infinite scores, and for the lowest and the highest float32 number, which stand for
        infinite ones: ONION gives the lowest to a text in which it suspects no word.

    >>> can_be_drawn([-1.0, float("inf"), -STANDS_FOR_INFINITE]).tolist()
    [True, False, False]
    """
    return np.asarray(np.abs(np.asarray(scores, dtype=float)) < STANDS_FOR_INFINITE)
