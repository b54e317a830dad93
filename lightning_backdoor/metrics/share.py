"""The base class of metrics that are shares of rows, such as accuracies and rates."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric


class Share(Metric):
    """Share of rows that are hits; NaN before any row. Both counts are summed over processes, so the share is exact.

    A subclass calls ``count`` in its ``update`` with the rows that count and the rows that are hits. A rejected text
    has the prediction -1: it is never a hit, and it stays in the denominator.
    """

    full_state_update = False
    hits: Tensor
    rows: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("hits", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("rows", torch.tensor(0), dist_reduce_fx="sum")

    def count(self, hit: Tensor, among: Tensor) -> None:
        """Adds the rows marked in ``among``, as hits if also marked in ``hit``; both are (rows,), bool."""
        self.hits += (hit & among).sum()
        self.rows += among.sum()

    def compute(self) -> Tensor:
        """The share, a float32 scalar from 0 to 1."""
        return self.hits.float() / self.rows  # without rows 0 / 0, which is NaN
