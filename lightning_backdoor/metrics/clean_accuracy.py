"""CACC, the clean accuracy: the share of clean rows that are predicted correctly."""

from __future__ import annotations

from torch import Tensor

from lightning_backdoor.batch import Batch, clean_rows
from lightning_backdoor.metrics.share import Share


class CleanAccuracy(Share):
    """Share of clean rows that are predicted as their label; a rejected text counts as wrong.

    >>> import torch
    >>> metric = CleanAccuracy()
    >>> batch = {"poisoned": torch.tensor([False, False, True]), "original_label": torch.tensor([0, 1, 0])}
    >>> batch["negative"] = torch.tensor([False, False, False])
    >>> metric.update(torch.tensor([0, 0, 0]), batch)
    >>> metric.compute()
    tensor(0.5000)
    """

    def update(self, prediction: Tensor, batch: Batch) -> None:
        """Adds a batch; ``prediction`` is (batch,), int64, -1 for rejected texts."""
        self.count(prediction == batch["original_label"], clean_rows(batch))
