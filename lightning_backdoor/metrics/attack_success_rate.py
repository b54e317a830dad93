"""ASR, the attack success rate: the share of poisoned rows that the victim predicts as the target label."""

from __future__ import annotations

from torch import Tensor

from lightning_backdoor.batch import Batch
from lightning_backdoor.metrics.share import Share


class AttackSuccessRate(Share):
    """Share of poisoned rows that are predicted as the target label, which is the rows' ``label``.

    Poisoned rows are made from rows of other labels, so a correct prediction is never a success. A rejected text is not
    a success either, and stays in the denominator.

    Args:
        label: index of the only target label whose rows count, of several; None for all.

    >>> import torch
    >>> metric = AttackSuccessRate()
    >>> batch = {"poisoned": torch.tensor([False, True, True]), "label": torch.tensor([1, 1, 1])}
    >>> metric.update(torch.tensor([1, 1, -1]), batch)
    >>> metric.compute()
    tensor(0.5000)
    """

    def __init__(self, label: int | None = None) -> None:
        super().__init__()
        self.label = label

    def update(self, prediction: Tensor, batch: Batch) -> None:
        """Adds a batch; ``prediction`` is (batch,), int64, -1 for rejected texts."""
        counted = batch["poisoned"] if self.label is None else batch["poisoned"] & (batch["label"] == self.label)
        self.count(prediction == batch["label"], counted)
