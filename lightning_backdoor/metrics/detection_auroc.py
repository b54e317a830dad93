"""AUROC of detection: how well a defense's scores separate poisoned from clean rows."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat


class DetectionAUROC(Metric):
    """Exact AUROC of suspicion scores, poisoned against clean rows; NaN without poisoned or without clean rows.

    It is the share of (poisoned, clean) pairs of rows in which the poisoned row has the higher score, where a tie
    counts half. Pairs are counted in whole numbers, so scores may be of any finite size. All scores are
    kept, and gathered from all processes.

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
        """Adds rows; ``scores`` is (rows,), float32, ``poisoned`` is (rows,), bool.

        Raises:
            ValueError: a score is NaN or infinite.
        """
        if not scores.isfinite().all():
            raise ValueError(f"{int((~scores.isfinite()).sum())} of {len(scores)} scores are NaN or infinite")
        # float32, since a process without rows sends empty float32 tensors and dtypes must match
        self.scores.append(scores.float())
        self.poisoned.append(poisoned.float())

    def gathered(self) -> tuple[Tensor, Tensor]:
        """The scores and poison flags (0 or 1) of the rows of all processes, both (rows,), float32."""
        with self.sync_context():
            return self._all_rows()

    def compute(self) -> Tensor:
        """The AUROC, a float32 scalar from 0 to 1."""
        scores, poisoned = self._all_rows()
        ranks = torch.unique(scores, return_inverse=True)[1]
        distinct = int(ranks.max()) + 1 if len(ranks) else 0
        poisoned_counts = torch.bincount(ranks[poisoned == 1], minlength=distinct)
        clean_counts = torch.bincount(ranks[poisoned == 0], minlength=distinct)
        pairs = poisoned_counts.sum() * clean_counts.sum()
        # twice the pairs that a poisoned row wins: 2 per clean row of lower score, 1 per clean row of equal score
        won_twice = poisoned_counts * (2 * clean_counts.cumsum(0) - clean_counts)
        return won_twice.sum() / (2 * pairs)  # without pairs 0 / 0, which is NaN

    def _all_rows(self) -> tuple[Tensor, Tensor]:
        if not len(self.scores):
            return torch.empty(0, device=self.device), torch.empty(0, device=self.device)
        return dim_zero_cat(self.scores), dim_zero_cat(self.poisoned)
