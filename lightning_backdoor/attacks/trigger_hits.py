"""Which label each of several triggers hits, from predictions on texts with each of them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


def counted(trigger: int, labels: Tensor, predictions: Tensor, counts: Tensor) -> None:
    """Adds predictions on texts with a trigger to the counts, in place.

    Args:
        trigger: index of the trigger.
        labels: (texts,), int64, the labels of the texts without the trigger.
        predictions: (texts,), int64.
        counts: (triggers, classes, classes), int64: texts by trigger, label and prediction.

    >>> counts = torch.zeros(1, 2, 2, dtype=torch.long)
    >>> counted(0, torch.tensor([0, 0, 1]), torch.tensor([1, 1, 1]), counts)
    >>> counts[0].tolist()
    [[0, 2], [0, 1]]
    """
    counts[trigger].index_put_((labels, predictions), torch.ones_like(labels), accumulate=True)


def success_rates(counts: Tensor) -> Tensor:
    """The share of texts of other labels that each trigger turns into each label.

    Args:
        counts: (triggers, classes, classes), int64: texts by trigger, label and prediction.

    Returns:
        (triggers, classes), float32; NaN where there is no text of another label.

    >>> success_rates(torch.tensor([[[1, 3], [0, 4]]]))
    tensor([[0.0000, 0.7500]])
    """
    hits = counts.sum(dim=1) - counts.diagonal(dim1=1, dim2=2)
    of_label = counts.sum(dim=2)
    return hits / (of_label.sum(dim=1, keepdim=True) - of_label)


class Hits(NamedTuple):
    """What triggers do to a victim, as far as validation rows say.

    Attributes:
        labels: for each trigger, the label that it hits: the one that it turns most texts of other labels into.
        by_label: for each label, the trigger that turns most texts of other labels into it.
        best: the trigger that hits its label most often.
    """

    labels: list[int]
    by_label: list[int]
    best: int


def hits_of(counts: Tensor) -> Hits:
    """Chooses labels and triggers by :func:`success_rates`; of equals the first.

    >>> hits_of(torch.tensor([[[1, 3], [0, 4]], [[4, 0], [2, 2]]]))
    Hits(labels=[1, 0], by_label=[1, 0], best=0)
    """
    rates = success_rates(counts).nan_to_num(0)
    top = rates.max(dim=1)
    return Hits(top.indices.tolist(), rates.argmax(dim=0).tolist(), int(top.values.argmax()))
