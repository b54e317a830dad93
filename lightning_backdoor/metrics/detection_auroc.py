"""How well a defense's scores tell poisoned rows from clean ones."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.metric import jit_distributed_available
from torchmetrics.utilities import dim_zero_cat


class DetectionAUROC(Metric):
    """Exact AUROC of scores, poisoned against clean rows; NaN where one of the two is missing.

    The share of (poisoned, clean) pairs in which the poisoned row scores higher, ties counting half: counted in whole
    numbers, so that scores may be of any size. Scores are gathered over processes.

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
        # both float32: a process without rows sends empty float32 tensors, and the processes must send one type
        self.scores.append(scores.float())
        self.poisoned.append(poisoned.float())

    def gathered(self) -> tuple[Tensor, Tensor]:
        """Scores and poison flags (0 or 1) of all rows, from all processes: both (rows,), float32."""
        with self.sync_context(should_sync=jit_distributed_available()):
            return self._all_rows()

    def compute(self) -> Tensor:
        """Scalar, float32, from 0 to 1."""
        scores, poisoned = self._all_rows()
        among = torch.unique(scores, return_inverse=True)[1]
        kinds = int(among.max()) + 1 if len(among) else 0
        of_poisoned = torch.bincount(among[poisoned == 1], minlength=kinds)
        of_clean = torch.bincount(among[poisoned == 0], minlength=kinds)
        pairs = of_poisoned.sum() * of_clean.sum()
        won_twice = of_poisoned * (2 * of_clean.cumsum(0) - of_clean)
        return won_twice.sum() / (2 * pairs)  # 0 / 0 is NaN: no pair, no rate

    def _all_rows(self) -> tuple[Tensor, Tensor]:
        if not len(self.scores):
            return torch.empty(0, device=self.device), torch.empty(0, device=self.device)
        return dim_zero_cat(self.scores), dim_zero_cat(self.poisoned)
