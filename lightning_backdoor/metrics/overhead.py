"""Overhead: time of prediction with a defense, relative to the time without."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric


class Overhead(Metric):
    """Time of prediction with the defense over time of the victim alone, on the same texts of the same run.

    Only texts that were computed count: what a cache answered (:class:`lightning_backdoor.language.TextCache`) is not
    timed, neither with the defense nor without. NaN where no text was computed.

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
        """Adds a batch: the seconds that its computed texts took with the defense, and with the victim alone."""
        self.defended += defended
        self.plain += plain

    def compute(self) -> Tensor:
        """The ratio of the summed seconds, a float32 scalar; NaN before any computed text."""
        return self.defended / self.plain
