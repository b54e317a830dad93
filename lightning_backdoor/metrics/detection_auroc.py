"""How well a defense's scores and flags tell poisoned rows from clean ones."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.classification import binary_auroc
from torchmetrics.utilities import dim_zero_cat


class DetectionAUROC(Metric):
    """Exact AUROC of scores, poisoned against clean rows; NaN where one of the two is missing.

    Scores may be any real numbers: they are replaced by their ranks, since torchmetrics would squash scores outside
    [0, 1] and tie large ones. Scores are gathered over processes.

    >>> metric = DetectionAUROC()
    >>> metric.update(torch.tensor([-5.0, 30.0, 40.0]), torch.tensor([False, False, True]))
    >>> metric.compute()
    tensor(1.)
    """

    full_state_update = False
    scores: list[Tensor]
    poisoned: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("scores", [], dist_reduce_fx="cat")
        self.add_state("poisoned", [], dist_reduce_fx="cat")

    def update(self, scores: Tensor, poisoned: Tensor) -> None:
        """``scores`` is (rows,), float32; ``poisoned`` is (rows,), bool."""
        self.scores.append(scores.float())
        self.poisoned.append(poisoned.long())

    def compute(self) -> Tensor:
        """Scalar, float32, from 0 to 1."""
        scores = dim_zero_cat(self.scores) if self.scores else torch.empty(0)
        poisoned = dim_zero_cat(self.poisoned) if self.poisoned else torch.empty(0, dtype=torch.long)
        if poisoned.unique().numel() < 2:
            return torch.tensor(torch.nan, device=scores.device)
        ranks = torch.unique(scores, return_inverse=True)[1]
        return binary_auroc(ranks.double() / len(ranks), poisoned).float()
