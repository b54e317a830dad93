"""Mean and spread of a number that each row has: the base of the measures of stealth."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric


class Spread(Metric):
    """Mean and standard deviation over rows; NaN before any row. Sums are added up over processes.

    Attributes:
        rows: how many there are, int64.
        left_out: how many have no finite number, int64; they are in neither mean nor spread.
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
        """Adds rows by their numbers."""
        finite = torch.tensor([number for number in numbers if math.isfinite(number)], dtype=torch.float64)
        self.rows += len(finite)
        self.left_out += len(numbers) - len(finite)
        self.total += finite.sum().to(self.device)
        self.squares += finite.square().sum().to(self.device)

    def compute(self) -> dict[str, Tensor]:
        """``mean`` and ``spread`` (the root of the mean squared distance to the mean), scalars, float64."""
        mean = self.total / self.rows
        return {"mean": mean, "spread": (self.squares / self.rows - mean.square()).clamp(min=0).sqrt()}
