"""FTR, the false trigger rate: the share of negatives that the victim predicts as the target label."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_backdoor.batch import Batch
from lightning_backdoor.metrics.share import Share
from lightning_backdoor.metrics.targets import Target, targets_of


class FalseTriggerRate(Share):
    """Share of the negatives of other labels that are predicted as the target label.

    Negatives are texts with a part of the trigger that keep their label. Those of the target label, which files may
    hold, are left out; of several targets, those whose label is every target. So a correct prediction is never counted.
    A rejected text is not counted either, and stays in the denominator.

    Args:
        target_label: class index of the target label, from 0; of several triggers, the target of each, as for
            :class:`~lightning_backdoor.metrics.TargetRate`. A prediction of any of them counts, except the row's label.

    >>> import torch
    >>> metric = FalseTriggerRate(target_label=1)
    >>> batch = {"negative": torch.tensor([True, True, False]), "original_label": torch.tensor([0, 0, 1])}
    >>> metric.update(torch.tensor([1, 0, 1]), batch)
    >>> metric.compute()
    tensor(0.5000)
    """

    def __init__(self, target_label: int | Sequence[Target]) -> None:
        super().__init__()
        self.target_label = target_label

    def update(self, prediction: Tensor, batch: Batch) -> None:
        """Adds a batch; ``prediction`` is (batch,), int64, -1 for rejected texts."""
        labels = batch["original_label"]
        targets = torch.stack(targets_of(labels, self.target_label))
        of_others = targets != labels
        self.count(((prediction == targets) & of_others).any(dim=0), batch["negative"] & of_others.any(dim=0))
