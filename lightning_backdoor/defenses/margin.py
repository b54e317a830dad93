"""The margin of a class: by how much its logit exceeds those of the others."""

from __future__ import annotations

import torch
from torch import Tensor


def margin(logits: Tensor, classes: Tensor) -> Tensor:
    """By how much the logit of a class exceeds the largest of the others; (rows,), negative where it is smaller.

    Args:
        logits: (rows, classes).
        classes: (rows,), int64, one class of each row.

    >>> margin(torch.tensor([[1.0, 4.0, 2.0], [1.0, 4.0, 2.0]]), torch.tensor([1, 0])).tolist()
    [2.0, -3.0]
    """
    own = classes[:, None]
    others = logits.scatter(1, own, -torch.inf).amax(dim=1)
    return logits.gather(1, own).squeeze(1) - others
