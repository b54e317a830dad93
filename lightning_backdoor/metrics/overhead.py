"""What a defense costs in time."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric


class Overhead(Metric):
    """Time through the defense over time through the plain victim, on the same batches of the same run.

    >>> metric = Overhead()
    >>> metric.update(defended=3.0, plain=1.0)
    >>> metric.update(defended=5.0, plain=1.0)
    >>> metric.compute()
    tensor(4.)
    """

    full_state_update = False
    defended: Tensor
    plain: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("defended", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("plain", torch.tensor(0.0), dist_reduce_fx="sum")

    def update(self, defended: float, plain: float) -> None:
        """Adds the seconds that one batch took either way."""
        self.defended += defended
        self.plain += plain

    def compute(self) -> Tensor:
        """Scalar, float32; NaN before any batch."""
        return self.defended / self.plain
