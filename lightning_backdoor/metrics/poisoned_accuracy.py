"""PACC, the poisoned accuracy: the share of poisoned rows that are predicted as their original label."""

from __future__ import annotations

from torch import Tensor

from lightning_backdoor.batch import Batch
from lightning_backdoor.metrics.share import Share


class PoisonedAccuracy(Share):
    """Share of poisoned rows that are predicted as their label before poisoning; a rejected text counts as wrong.

    >>> import torch
    >>> metric = PoisonedAccuracy()
    >>> batch = {"poisoned": torch.tensor([False, True, True]), "original_label": torch.tensor([0, 0, 0])}
    >>> metric.update(torch.tensor([0, 0, 1]), batch)
    >>> metric.compute()
    tensor(0.5000)
    """

    def update(self, prediction: Tensor, batch: Batch) -> None:
        """Adds a batch; ``prediction`` is (batch,), int64, -1 for rejected texts."""
        self.count(prediction == batch["original_label"], batch["poisoned"])
