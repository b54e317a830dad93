"""TPR and FPR of detection: the shares of poisoned and of clean rows that a defense flags."""

from __future__ import annotations

from torch import Tensor

from lightning_backdoor.batch import Batch, clean_rows
from lightning_backdoor.metrics.share import Share


class FlagRate(Share):
    """Share of the poisoned rows that a defense flags (TPR), or of the clean rows that it flags (FPR).

    Args:
        poisoned: True for the TPR, False for the FPR.

    >>> import torch
    >>> tpr, fpr = FlagRate(poisoned=True), FlagRate(poisoned=False)
    >>> batch = {"poisoned": torch.tensor([False, False, True]), "negative": torch.tensor([False, False, False])}
    >>> tpr(torch.tensor([True, False, True]), batch), fpr(torch.tensor([True, False, True]), batch)
    (tensor(1.), tensor(0.5000))
    """

    def __init__(self, poisoned: bool) -> None:
        super().__init__()
        self.of_poisoned = poisoned

    def update(self, flagged: Tensor, batch: Batch) -> None:
        """Adds a batch; ``flagged`` is (batch,), bool, True for flagged texts."""
        self.count(flagged, batch["poisoned"] if self.of_poisoned else clean_rows(batch))
