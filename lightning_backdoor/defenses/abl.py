"""Anti-backdoor learning, ABL (arXiv 2110.11571): its two losses, and the isolation of the rows learned first.

With the loss ``ℓ`` of a row, training minimises ``E[sign(ℓ - γ) ℓ]`` over all rows at first, local gradient ascent
(LGA), which keeps rows from a loss below ``γ``; rows with a trigger fall there first. The rows with the lowest losses
are isolated, and training goes on with ``E[ℓ]`` over the other rows minus ``E[ℓ]`` over the isolated rows, global
gradient ascent (GGA), which unlearns the latter.

The published program applies the sign to the mean loss of a batch instead of each row's, has flooding instead of LGA as
its default, and first fine-tunes on the other rows and then unlearns on the isolated rows alone.
"""

from __future__ import annotations

from torch import Tensor


def local_gradient_ascent(losses: Tensor, gamma: float) -> Tensor:
    """The loss of the first stage: rows whose loss is below ``gamma`` are pushed up again.

    Args:
        losses: (batch,), loss of each row.
        gamma: lower bound on the losses.

    Returns:
        A scalar.

    >>> import torch
    >>> local_gradient_ascent(torch.tensor([0.7, 0.2]), gamma=0.5)
    tensor(0.2500)
    """
    return ((losses.detach() - gamma).sign() * losses).mean()


def global_gradient_ascent(losses: Tensor, isolated: Tensor) -> Tensor:
    """The loss of the second stage: the mean loss of the other rows minus that of the isolated rows.

    Args:
        losses: (batch,), loss of each row.
        isolated: (batch,), bool.

    Returns:
        A scalar; a batch without rows of one kind lacks its term.

    >>> import torch
    >>> global_gradient_ascent(torch.tensor([0.7, 0.1, 0.2]), torch.tensor([False, True, False]))
    tensor(0.3500)
    """
    return mean_of(losses, ~isolated) - mean_of(losses, isolated)


def mean_of(losses: Tensor, rows: Tensor) -> Tensor:
    """The mean loss of some rows, (batch,) bool; 0 of none, with a gradient, as distributed training needs one."""
    return losses[rows].sum() / rows.sum().clamp(min=1)


def first_learned(losses: Tensor, share: float) -> Tensor:
    """The positions of the rows with the lowest losses, in the order of the rows; of equal losses the first.

    Args:
        losses: (rows,).
        share: share of the rows; at least one row is returned.

    >>> import torch
    >>> first_learned(torch.tensor([0.3, 0.1, 0.9, 0.1]), share=0.5)
    tensor([1, 3])
    """
    number = max(1, int(share * len(losses) + 1e-9))  # 0.29 * 100 is 28.999…
    return losses.argsort(stable=True)[:number].sort().values
