"""Target labels as metrics are given them, for clean rows: one, or that of each trigger of an attack."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

#: the index of a target label; where it depends on a row's label, one for each label.
Target = int | Sequence[int]


def targets_of(labels: Tensor, target: int | Sequence[Target]) -> list[Tensor]:
    """What an attack would make of rows: the target label of each, by trigger.

    Args:
        labels: (rows,), int64, the labels of clean rows.
        target: the index of the target label, or the target of each trigger.

    Returns:
        (rows,), int64, per trigger.

    >>> targets_of(torch.tensor([0, 2]), 1)
    [tensor([1, 1])]
    >>> targets_of(torch.tensor([0, 2]), [0, [1, 2, 0]])
    [tensor([0, 0]), tensor([1, 0])]
    """
    of_triggers = [target] if isinstance(target, int) else target
    return [
        torch.full_like(labels, one) if isinstance(one, int) else torch.tensor(one, device=labels.device)[labels]
        for one in of_triggers
    ]
