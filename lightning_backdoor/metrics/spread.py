"""The base class of stealth metrics: mean and standard deviation of one number per row."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric


class Spread(Metric):
    """Mean and standard deviation of a number over rows; NaN before any row. Sums are accumulated over processes.

    A subclass computes the number of each row in its ``update`` and calls ``add``.

    Attributes:
        rows: number of rows counted, int64.
        left_out: number of rows whose number is not finite, int64; neither mean nor spread includes them.
    """

    full_state_update = False
    rows: Tensor
    left_out: Tensor
    total: Tensor
    squares: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("rows", "left_out"):
            self.add_state(name, torch.tensor(0), dist_reduce_fx="sum")
        for name in ("total", "squares"):
            self.add_state(name, torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")

    def add(self, numbers: Sequence[float]) -> None:
        """Adds rows, given one number per row; rows whose number is not finite count in ``left_out``."""
        finite = torch.tensor([number for number in numbers if math.isfinite(number)], dtype=torch.float64)
        self.rows += len(finite)
        self.left_out += len(numbers) - len(finite)
        self.total += finite.sum().to(self.device)
        self.squares += finite.square().sum().to(self.device)

    def compute(self) -> dict[str, Tensor]:
        """``mean`` and ``spread`` (the population standard deviation), float64 scalars."""
        mean = self.total / self.rows
        return {"mean": mean, "spread": (self.squares / self.rows - mean.square()).clamp(min=0).sqrt()}
