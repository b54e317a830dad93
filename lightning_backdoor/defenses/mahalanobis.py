"""Mahalanobis distances of hidden states: class means, shrunk covariances, and distances, for all layers at once.

A covariance of hidden states is seldom formed: it has (hidden size)² entries per layer, and fewer rows than that
determine it. It is kept as its principal directions, of which there are at most as many as rows, and one variance for
all other directions, which shrinkage makes equal.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_backdoor.errors import InputError


class Covariance(NamedTuple):
    """The shrunk covariance of each layer, by its eigenvectors.

    Attributes:
        directions: (layers, rank, hidden size), eigenvectors of the covariance, orthonormal rows.
        variances: (layers, rank), their eigenvalues after shrinkage.
        rest: (layers,), the eigenvalue of every direction that is orthogonal to them.
    """

    directions: Tensor
    variances: Tensor
    rest: Tensor


def class_means(states: Tensor, labels: Tensor, classes: int, fewest: int = 0) -> Tensor:
    """The mean state of each class.

    Args:
        states: (layers, rows, hidden size).
        labels: (rows,), int64; every class has a row, or ``fewest`` is given.
        classes: number of classes.
        fewest: a class of fewer rows than that takes the mean of all rows.

    Returns:
        (layers, classes, hidden size).

    >>> states = torch.tensor([[[0.0, 2.0], [4.0, 0.0], [2.0, 4.0]]])
    >>> class_means(states, torch.tensor([0, 1, 0]), classes=2).tolist()
    [[[1.0, 3.0], [4.0, 0.0]]]
    """
    rows = [labels == label for label in range(classes)]
    return torch.stack([(states[:, own] if own.sum() >= fewest else states).mean(dim=1) for own in rows], dim=1)


def shrunk_covariance(residuals: Tensor, shrinkage: float) -> Covariance:
    """The covariance of each layer, ``(1 - a) S + a (trace S / hidden size) I``, S with the number of rows as divisor.

    Args:
        residuals: (layers, rows, hidden size), states minus their means, float64.
        shrinkage: a, above 0 and at most 1.

    Raises:
        InputError: the states of a layer are all equal.

    >>> covariance = shrunk_covariance(torch.tensor([[[3.0, 0.0], [-3.0, 0.0]]]), shrinkage=0.5)
    >>> covariance.variances, covariance.rest  # S is 9 in the first direction, and 0 in the second
    (tensor([[6.7500, 2.2500]]), tensor([2.2500]))
    """
    directions, eigenvalues, mean = _principal(residuals)
    if not (mean > 0).all():
        problem = f"their states are all equal in {int((mean <= 0).sum())} of {len(mean)} layers"
        raise InputError("reference rows", problem, "give different texts")
    rest = shrinkage * mean
    return Covariance(directions, (1 - shrinkage) * eigenvalues + rest[:, None], rest)


def ledoit_wolf_covariance(residuals: Tensor) -> Covariance:
    """The covariance of each layer as in :func:`shrunk_covariance`, with the share of :func:`ledoit_wolf`.

    A layer whose states are all equal has variance 1 in all directions, so that all distances in it are 0.

    Args:
        residuals: (layers, rows, hidden size), states minus their means, float64.

    >>> residuals = torch.tensor([[[3.0, 0.0], [-3.0, 0.0], [0.0, 1.0], [0.0, -1.0]]]).double()
    >>> shrunk, share = ledoit_wolf(residuals[0])
    >>> torch.allclose(ledoit_wolf_covariance(residuals).variances[0], shrunk.diagonal())
    True
    """
    rows, size = residuals.shape[1:]
    directions, eigenvalues, mean = _principal(residuals)
    square = eigenvalues.square().sum(dim=1)
    to_target = square - size * mean.square()
    noise = (residuals.square().sum(dim=2).square().mean(dim=1) - square) / rows
    share = torch.where(to_target > 0, noise / to_target, 0.0).clamp(0, 1)
    rest = torch.where(mean > 0, share * mean, 1.0)
    return Covariance(directions, (1 - share)[:, None] * eigenvalues + rest[:, None], rest)


def _principal(residuals: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Eigenvectors and eigenvalues of the covariance of each layer, and the mean of all eigenvalues."""
    _, values, directions = torch.linalg.svd(residuals, full_matrices=False)
    eigenvalues = values.square() / residuals.shape[1]
    return directions, eigenvalues, eigenvalues.sum(dim=1) / residuals.shape[2]


def squared_distances(states: Tensor, means: Tensor, covariance: Covariance) -> Tensor:
    """The squared Mahalanobis distance of each state to each mean.

    Args:
        states: (layers, rows, hidden size).
        means: (layers, classes, hidden size).
        covariance: of the same layers.

    Returns:
        (layers, rows, classes).

    >>> covariance = Covariance(torch.tensor([[[1.0, 0.0]]]), torch.tensor([[4.0]]), torch.tensor([0.5]))
    >>> squared_distances(torch.tensor([[[2.0, 1.0]]]), torch.zeros(1, 1, 2), covariance).tolist()
    [[[3.0]]]
    """
    difference = (states[:, :, None] - means[:, None]).flatten(1, 2)
    along = difference @ covariance.directions.mT
    distances: Tensor = (along.square() / covariance.variances[:, None]).sum(dim=2)
    if covariance.directions.shape[1] < states.shape[2]:
        across = difference - along @ covariance.directions  # subtracting squares instead would cancel digits
        distances = distances + across.square().sum(dim=2) / covariance.rest[:, None]
    return distances.view(len(states), states.shape[1], means.shape[1])


class PredictedAlike(NamedTuple):
    """Clean states by predicted class: a mean for each class, and one covariance around them, in each layer.

    Attributes:
        means: (layers, classes, hidden size).
        directions: see :class:`Covariance`, also for the following ones.
        variances: see there.
        rest: see there.
    """

    means: Tensor
    directions: Tensor
    variances: Tensor
    rest: Tensor

    @property
    def covariance(self) -> Covariance:
        """The covariance."""
        return Covariance(self.directions, self.variances, self.rest)

    def distances(self, states: Tensor, predictions: Tensor) -> Tensor:
        """The Mahalanobis distance of each state to the mean of its predicted class, (layers, rows).

        Args:
            states: (layers, rows, hidden size).
            predictions: (rows,), int64.
        """
        differences = states - self.means[:, predictions]
        at_zero = torch.zeros_like(differences[:, :1])
        return squared_distances(differences, at_zero, self.covariance).squeeze(2).sqrt()


def predicted_alike(states: Tensor, predictions: Tensor, classes: int, fewest: int) -> PredictedAlike:
    """Fits class means, and a Ledoit-Wolf covariance of all states less the mean of their class.

    Args:
        states: (layers, rows, hidden size), float64.
        predictions: (rows,), int64.
        classes: number of classes.
        fewest: a class of fewer rows than that takes the mean of all rows.
    """
    means = class_means(states, predictions, classes, fewest)
    return PredictedAlike(means, *ledoit_wolf_covariance(states - means[:, predictions]))


def whitened(states: Tensor, covariance: Covariance) -> Tensor:
    """States times the inverse of the covariance of their layer.

    Args:
        states: (layers, rows, hidden size).
        covariance: of the same layers.

    Returns:
        (layers, rows, hidden size).

    >>> covariance = Covariance(torch.tensor([[[1.0, 0.0]]]), torch.tensor([[4.0]]), torch.tensor([0.5]))
    >>> whitened(torch.tensor([[[2.0, 1.0]]]), covariance).tolist()
    [[[0.5, 2.0]]]
    """
    along = states @ covariance.directions.mT
    across = states - along @ covariance.directions
    result: Tensor = (along / covariance.variances[:, None]) @ covariance.directions
    return result + across / covariance.rest[:, None, None]


def ledoit_wolf(rows: Tensor) -> tuple[Tensor, float]:
    """The Ledoit-Wolf covariance of rows: shrunk towards a multiple of the identity by the share that fits best.

    With S the covariance (divisor n) of n rows of k values and m = trace S / k, the share is b / d, at most 1, where
    ``d = |S - m I|²`` and ``b = (mean over rows of |x x' - S|²) / n``, x a row minus the mean.

    Args:
        rows: (rows, k), float64.

    Returns:
        The covariance, (k, k), and the share.

    >>> covariance, share = ledoit_wolf(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]).double())
    >>> covariance.tolist(), share
    ([[0.5, 0.0], [0.0, 0.5]], 0.0)
    """
    centred = rows - rows.mean(dim=0)
    count, size = centred.shape
    covariance = centred.mT @ centred / count
    target = covariance.diagonal().mean() * torch.eye(size).to(covariance)
    to_target = (covariance - target).square().sum()
    # the mean of |x x' - S|² is the mean of |x|⁴ minus |S|²
    noise = (centred.square().sum(dim=1).square().mean() - covariance.square().sum()) / count
    share = float((noise / to_target).clamp(0, 1)) if to_target > 0 else 0.0
    return (1 - share) * covariance + share * target, share
