"""What is known about the threshold of a defense, and the lines that say it."""

from __future__ import annotations

import math
from typing import NamedTuple


class Facts(NamedTuple):
    """The threshold of a defense, and how it was set.

    Attributes:
        threshold: texts whose score is at or above it are flagged.
        texts: number of clean texts that set it, or that were scored with it.
        allowed: number of these texts that the budget allows to be flagged; without a budget, that are flagged.
        budget: share of clean texts that may be flagged; None where the threshold is not set by a budget.
    """

    threshold: float
    texts: int
    allowed: int
    budget: float | None

    @property
    def too_few(self) -> bool:
        """Whether the budget is less than one of the calibration texts, so that the threshold cannot keep it."""
        return self.budget is not None and self.allowed < 1

    def line(self) -> str:
        """The threshold and the number of calibration texts.

        >>> Facts(3.25, 60, 6, 0.1).line()
        'threshold 3.25, set on 60 clean texts for a budget of 10 % of them'
        """
        texts = f"{self.texts} clean text{'s' if self.texts != 1 else ''}"
        if self.budget is None:
            return f"threshold {self.threshold:.6g}, which flags {self.allowed} of {texts}"
        return f"threshold {self.threshold:.6g}, set on {texts} for a budget of {100 * self.budget:g} % of them"

    def warning(self) -> str:
        """The warning that there are too few calibration texts.

        >>> Facts(3.25, 1, 0, 0.1).warning()
        '1 calibration text cannot set a threshold for a budget of 10 %: clean texts may be flagged far more often; ...'
        """
        assert self.budget is not None
        texts = f"{self.texts} calibration text{'s' if self.texts != 1 else ''}"
        need = math.ceil(1 / self.budget - 1e-9)
        return (
            f"{texts} cannot set a threshold for a budget of {100 * self.budget:g} %: clean texts may be flagged far"
            f" more often; give at least {need}, better ten times as many"
        )
