"""The share of rows of which something holds: the base of the rates."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric


class Share(Metric):
    """Hits over rows; NaN before any row. Counts are summed over processes, so the value is exact.

    A rejected text has the prediction -1: it is never a hit, and it stays in the denominator.
    """

    full_state_update = False
    hits: Tensor
    rows: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("hits", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("rows", torch.tensor(0), dist_reduce_fx="sum")

    def count(self, hit: Tensor, among: Tensor) -> None:
        """Adds rows; ``hit`` and ``among`` are (rows,), bool, and only rows ``among`` count."""
        self.hits += (hit & among).sum()
        self.rows += among.sum()

    def compute(self) -> Tensor:
        """Scalar, float32, from 0 to 1."""
        return self.hits.float() / self.rows  # 0 / 0 is NaN: no rows, no rate
