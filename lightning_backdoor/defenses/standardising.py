"""Putting scores of different kinds on one scale: mean 0 and standard deviation 1 over clean rows."""

from __future__ import annotations

import torch
from torch import Tensor


def scale_of(values: Tensor) -> Tensor:
    """Mean and standard deviation (divisor n) of each score over n rows.

    Args:
        values: (scores, rows).

    Returns:
        (2, scores).
    """
    return torch.stack([values.mean(dim=1), values.std(dim=1, correction=0)])


def standardised(values: Tensor, scale: Tensor) -> Tensor:
    """Scores minus their mean, over their standard deviation; 0 where that is 0.

    Args:
        values: (scores, rows).
        scale: see :func:`scale_of`, of these rows or of others.

    >>> standardised(torch.tensor([[1.0, 5.0], [2.0, 2.0]]), torch.tensor([[3.0, 2.0], [2.0, 0.0]])).tolist()
    [[-1.0, 1.0], [0.0, 0.0]]
    """
    mean, std = scale[:, :, None]
    return torch.where(std > 0, (values - mean) / std, 0.0)
