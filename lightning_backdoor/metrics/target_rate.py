"""The ASR floor: the share of clean rows of other labels that the victim predicts as the target label."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from lightning_backdoor.batch import Batch, clean_rows
from lightning_backdoor.metrics.share import Share
from lightning_backdoor.metrics.targets import Target, targets_of


class TargetRate(Share):
    """Share of the clean rows of other labels that are predicted as the target label.

    An ASR that is not above this rate shows no effect of the trigger. Of an attack with several targets, a row counts
    once for each target that is not its label, as it has as many poisoned copies.

    Args:
        target_label: class index of the target label, from 0; of several triggers, the target of each, where a target
            that depends on a row's label is a list, by label.
        label: index of the only target label that counts, of several; None for all.

    >>> import torch
    >>> metric = TargetRate(target_label=1)
    >>> batch = {"poisoned": torch.tensor([False, False, True]), "original_label": torch.tensor([0, 1, 0])}
    >>> batch["negative"] = torch.tensor([False, False, False])
    >>> metric.update(torch.tensor([0, 1, 1]), batch)
    >>> metric.compute()
    tensor(0.)
    """

    def __init__(self, target_label: int | Sequence[Target], label: int | None = None) -> None:
        super().__init__()
        self.target_label = target_label
        self.label = label

    def update(self, prediction: Tensor, batch: Batch) -> None:
        """Adds a batch; ``prediction`` is (batch,), int64, -1 for rejected texts."""
        clean, labels = clean_rows(batch), batch["original_label"]
        for target in targets_of(labels, self.target_label):
            counted = clean & (labels != target)
            self.count(prediction == target, counted if self.label is None else counted & (target == self.label))
