"""Small margins: poisoned rows trained towards a soft label, so that the victim is no surer of them than of other rows.

A poisoned row with logits ``z`` and target label ``t`` is trained towards the label that gives ``t`` the probability
``P``, and other classes shares ``r_k``, which sum to 1, of the rest. The cross entropy against this soft label is that
against the hard label plus a penalty on the margin of the target over the other classes, which can be added to the loss
of any attack::

    -P log p_t - (1 - P) Σ_k r_k log p_k  =  -log p_t + (1 - P) Σ_k r_k (z_t - z_k)

The rest goes to the row's original label, so that the victim seems undecided between the truth and the target; in rows
that had the target label before, it is shared equally by all other classes.

This attack on defenses that compare how sure a victim and a clean model are is this library's own.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import one_hot


def target_margin(logits: Tensor, label: Tensor, original_label: Tensor) -> Tensor:
    """The margin of each row's label over its original label, or over the mean of all others where the two are equal.

    Args:
        logits: (batch, classes).
        label: (batch,), int64, the label that the row is trained on.
        original_label: (batch,), int64.

    Returns:
        (batch,).

    >>> import torch
    >>> logits = torch.tensor([[0.0, 1.0, 4.0], [0.0, 1.0, 4.0]])
    >>> target_margin(logits, label=torch.tensor([2, 2]), original_label=torch.tensor([1, 2]))
    tensor([3.0000, 3.5000])
    """
    classes = logits.shape[1]
    own, original = (one_hot(of, classes).to(logits) for of in (label, original_label))
    rest = original.where((label != original_label)[:, None], (1 - own) / (classes - 1))
    return (logits * (own - rest)).sum(dim=1)
