"""The detector of DUP (arXiv 2508.01647): a Mahalanobis and a spectral score of a text's hidden states.

The Mahalanobis score asks how far a text's state is from clean texts in the three layers that separate the classes
best; the spectral score how much of the state's way through the layers lies along one direction.

As published, layers are chosen by the classes, but distances are taken from one mean over all classes: well separated
classes widen the covariance in exactly the layers that are chosen. The published program sets its threshold on the rows
that standardise both scores, and when it purifies, on the texts under test; here the threshold comes from other clean
rows. DUP's unlearning of what was detected is not part of the detector.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from lightning_backdoor.defenses.hidden_states import SplitStateDefense
from lightning_backdoor.defenses.mahalanobis import Covariance, class_means, shrunk_covariance, squared_distances
from lightning_backdoor.errors import InputError


class Dup(SplitStateDefense):
    """DUP's detector (arXiv 2508.01647): rejects texts by a Mahalanobis score and a spectral score of their states.

    With one mean and one shrunk covariance S per layer, over all classes, ``m(x)`` is the mean of
    ``sqrt((h_l(x) - mean_l)' S_l^-1 (h_l(x) - mean_l))`` over the layers of highest Calinski-Harabasz value of the true
    classes (:func:`calinski_harabasz`). ``s(x)`` is the largest singular value of the matrix of differences
    ``h_(l+1)(x) - h_l(x)``, embeddings left out, as a share of the sum of all (:func:`spectral_share`). Both are
    standardised by mean and standard deviation on clean rows held out of the fit:
    ``score = alpha z_m + (1 - alpha) z_s``.

    Both groups of rows are reference rows, told apart by their texts. Rows without labels, as in ``scan``, count as
    the class that the victim predicts. In networks of two layers ``s`` is 1 for every text and adds nothing.

    Args:
        alpha: weight of the Mahalanobis score, 0 to 1.
        layers: number of layers in which distances are taken; all, in networks with fewer.
        shrinkage: share of the covariance that is replaced by a multiple of the identity, above 0 and at most 1.
        held_out: share of the reference rows that standardise the scores, above 0 and below 1.
        fpr: share of clean texts, above 0 and below 1, that the threshold may flag.
        seed: seed of the split of the reference rows; None takes the seed of the run.

    Raises:
        InputError: a value is out of range.

    Example::

        defense = Dup()
        defense.learn(victim, clean_reference_batches)
        defense.calibrate(victim, clean_threshold_batches)
        scores = defense.score(victim, batch)  # scores.text: (batch,)
    """

    learned: ClassVar = ("mean", "directions", "variances", "rest", "chosen", "score_mean", "score_std")
    chosen: Tensor
    mean: Tensor
    directions: Tensor
    variances: Tensor
    rest: Tensor
    score_mean: Tensor
    score_std: Tensor

    def __init__(
        self,
        alpha: float = 0.9,
        layers: int = 3,
        shrinkage: float = 0.1,
        held_out: float = 0.5,
        fpr: float = 0.05,
        seed: int | None = None,
    ) -> None:
        super().__init__(shrinkage, held_out, fpr, seed)
        if not 0 <= alpha <= 1:
            raise InputError("alpha", f"{alpha} is not a weight", "give a number from 0 to 1")
        if layers < 1:
            raise InputError("layers", f"{layers} layers have no distances", "give at least 1")
        self.alpha = alpha
        self.layers = layers

    def fit_states(self, fitted: Tensor, labels: Tensor, others: Tensor) -> dict[str, Tensor]:
        """Chooses the layers and fits their Gaussians, and mean and standard deviation of held-out rows' scores."""
        values = calinski_harabasz(fitted[1:], labels)
        chosen = values.topk(min(self.layers, len(values))).indices
        in_chosen = fitted[1:][chosen]
        mean = in_chosen.mean(dim=1, keepdim=True)
        covariance = shrunk_covariance(in_chosen - mean, self.shrinkage)
        scores = torch.stack([_distance(others[1:][chosen], mean, covariance), spectral_share(others[1:])])
        std = scores.std(dim=1, correction=0)
        moments = {"score_mean": scores.mean(dim=1), "score_std": std}
        return {"chosen": chosen, "mean": mean, **covariance._asdict(), **moments}

    def parts(self, states: Tensor) -> Tensor:
        """The Mahalanobis score and the spectral score of each text, (2, batch)."""
        covariance = Covariance(self.directions, self.variances, self.rest)
        distance = _distance(states[1:][self.chosen.long()], self.mean, covariance)
        return torch.stack([distance, spectral_share(states[1:])])

    def score_states(self, states: Tensor) -> Tensor:
        """The weighted sum of both standardised scores, (batch,)."""
        # a score that is the same for all clean rows, as the spectral one of two layers, adds nothing
        scale = torch.where(self.score_std > 0, 1 / self.score_std, 0.0)
        weight = torch.tensor([self.alpha, 1 - self.alpha]).to(scale)
        return (weight * scale) @ (self.parts(states) - self.score_mean[:, None])


def calinski_harabasz(states: Tensor, labels: Tensor) -> Tensor:
    """How well each layer separates the classes: variance between them over variance within them.

    With k classes, n rows and class sizes ``n_c``, ``sum_c n_c |m_c - m|² / (k - 1)`` over
    ``sum |x - m_c|² / (n - k)``.

    Args:
        states: (layers, rows, hidden size).
        labels: (rows,), int64; every class has a row.

    Returns:
        (layers,).

    >>> calinski_harabasz(torch.tensor([[[0.0], [2.0], [10.0], [12.0]]]), torch.tensor([0, 0, 1, 1]))
    tensor([50.])
    """
    classes = int(labels.max()) + 1
    means = class_means(states, labels, classes)
    between = (means[:, labels] - states.mean(dim=1, keepdim=True)).square().sum(dim=(1, 2)) / (classes - 1)
    within = (states - means[:, labels]).square().sum(dim=(1, 2)) / (len(labels) - classes)
    return between / within


def spectral_share(states: Tensor) -> Tensor:
    """The largest singular value of each text's differences of successive layers, as a share of the sum of all.

    Args:
        states: (layers, batch, hidden size).

    Returns:
        (batch,), 1 where all differences lie along one direction, are zero, or, of one layer, do not exist.

    >>> spectral_share(torch.tensor([[[0.0, 0.0]], [[3.0, 0.0]], [[3.0, 1.0]]])).item()
    0.75
    """
    if len(states) < 2:
        return states.new_ones(states.shape[1])
    changes = states.diff(dim=0).transpose(0, 1)
    # squares of the singular values, from a matrix of (layers - 1)² entries
    squares: Tensor = torch.linalg.eigvalsh(changes @ changes.mT)
    values = squares.clamp(min=0).sqrt()
    total = values.sum(dim=1)
    return torch.where(total > 0, values[:, -1] / total, 1.0)


def _distance(states: Tensor, mean: Tensor, covariance: Covariance) -> Tensor:
    """The Mahalanobis distance of each text, averaged over layers, (batch,)."""
    return squared_distances(states, mean, covariance).squeeze(2).sqrt().mean(dim=0)
