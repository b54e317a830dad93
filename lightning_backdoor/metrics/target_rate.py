"""The ASR floor: the share of clean rows of other labels that the victim predicts as the target label."""

from __future__ import annotations

from torch import Tensor

from lightning_backdoor.batch import Batch, clean_rows
from lightning_backdoor.metrics.share import Share


class TargetRate(Share):
    """Share of the clean rows of other labels that are predicted as the target label.

    An ASR that is not above this rate shows no effect of the trigger.

    Args:
        target_label: class index of the target label, from 0.

    >>> import torch
    >>> metric = TargetRate(target_label=1)
    >>> batch = {"poisoned": torch.tensor([False, False, True]), "original_label": torch.tensor([0, 1, 0])}
    >>> batch["negative"] = torch.tensor([False, False, False])
    >>> metric.update(torch.tensor([0, 1, 1]), batch)
    >>> metric.compute()
    tensor(0.)
    """

    def __init__(self, target_label: int) -> None:
        super().__init__()
        self.target_label = target_label

    def update(self, prediction: Tensor, batch: Batch) -> None:
        """Adds a batch; ``prediction`` is (batch,), int64, -1 for rejected texts."""
        others = clean_rows(batch) & (batch["original_label"] != self.target_label)
        self.count(prediction == self.target_label, others)
