"""The floor of the ASR: how often the victim gives the target label to clean texts of other labels."""

from __future__ import annotations

from torch import Tensor

from lightning_backdoor.batch import Batch, clean_rows
from lightning_backdoor.metrics.share import Share


class TargetRate(Share):
    """P(target | clean row of another label); an ASR at this rate is no attack.

    Args:
        target_label: class index, from 0.

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
        """``prediction`` is (batch,), int64, -1 for rejected texts."""
        others = clean_rows(batch) & (batch["original_label"] != self.target_label)
        self.count(prediction == self.target_label, others)
