"""DAN (arXiv 2210.07907): the distance of a text's hidden states from those of clean texts, over all layers.

A backdoored network keeps poisoned texts apart from clean ones in its hidden states. For each layer the Mahalanobis
distance to the nearest class of clean texts is computed, and the distances of all layers are put on one scale and
averaged.

The published program takes its threshold from the same rows that give mean and standard deviation; here the threshold
comes from other rows. By default it takes the mean over all tokens as a text's state, as an option does here
(``token="mean"``); on encoders the state of the first token, from which the head reads, tells far more (on a MiniLM
with a one-word trigger, an AUROC of 0.94 against 0.60). In the program a low score is suspicious; here the sign is
turned. Differences of states are taken in float64, since in low layers the first token's states differ in their last
digits.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from lightning_backdoor.defenses.hidden_states import SplitStateDefense
from lightning_backdoor.defenses.mahalanobis import Covariance, class_means, shrunk_covariance, squared_distances
from lightning_backdoor.errors import InputError


class Dan(SplitStateDefense):
    """DAN (arXiv 2210.07907): rejects texts whose hidden states are far from every class of clean texts.

    For each layer l, the embeddings left out, with class means ``m_c`` and one covariance S of clean rows, shrunk by
    ``shrinkage``, the squared distance is ``d_l(x) = min_c (h_l(x) - m_c)' S^-1 (h_l(x) - m_c)``. With mean and
    standard deviation of ``d_l`` on clean rows held out of the fit, ``z_l = (d_l - mean) / std``. A text's score is the
    mean of ``z_l`` over layers, or the largest.

    Both groups of rows are reference rows, told apart by their texts. Rows without labels, as in ``scan``, count as
    the class that the victim predicts.

    Args:
        layers: ``mean`` over layers, or ``max``, where the most abnormal layer decides.
        token: whose state stands for a text: ``readout``, the token that the head reads (the first one in encoders, the
            last one in decoders), or the ``mean`` over all tokens, which costs a forward pass of its own.
        shrinkage: share of the covariance that is replaced by a multiple of the identity, above 0 and at most 1.
        held_out: share of the reference rows that normalise the distances, above 0 and below 1.
        fpr: share of clean texts, above 0 and below 1, that the threshold may flag.
        seed: seed of the split of the reference rows; None takes the seed of the run.

    Raises:
        InputError: a value is out of range.

    Example::

        defense = Dan()
        defense.learn(victim, clean_reference_batches)
        defense.calibrate(victim, clean_threshold_batches)
        scores = defense.score(victim, batch)  # scores.text: (batch,)
    """

    tokens: ClassVar = ("readout", "mean")
    learned: ClassVar = ("means", "directions", "variances", "rest", "mean", "std")
    means: Tensor
    directions: Tensor
    variances: Tensor
    rest: Tensor
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        layers: Literal["mean", "max"] = "mean",
        token: Literal["readout", "mean"] = "readout",
        shrinkage: float = 0.1,
        held_out: float = 0.2,
        fpr: float = 0.05,
        seed: int | None = None,
    ) -> None:
        super().__init__(shrinkage, held_out, fpr, seed, token)
        if layers not in ("mean", "max"):
            raise InputError("layers", f"{layers!r} is not a way to combine layers", "give mean or max")
        self.layers = layers

    def fit_states(self, fitted: Tensor, labels: Tensor, others: Tensor) -> dict[str, Tensor]:
        """Fits class means and covariance, and mean and standard deviation of the distances of held-out rows.

        Raises:
            InputError: the distances of the held-out rows are all equal, as those of one row.
        """
        means = class_means(fitted[1:], labels, int(labels.max()) + 1)
        covariance = shrunk_covariance(fitted[1:] - means[:, labels], self.shrinkage)
        distances = squared_distances(others[1:], means, covariance).amin(dim=2)
        std = distances.std(dim=1, correction=0)
        if distances.shape[1] < 2 or not (std > 0).all():
            problem = f"the distances of {distances.shape[1]} held-out rows do not differ"
            raise InputError("held_out", problem, "give more reference rows, or a larger share")
        return {"means": means, **covariance._asdict(), "mean": distances.mean(dim=1), "std": std}

    def distances(self, states: Tensor) -> Tensor:
        """The squared distance of each text to the nearest class mean in each layer, (layers, batch)."""
        covariance = Covariance(self.directions, self.variances, self.rest)
        return squared_distances(states[1:], self.means, covariance).amin(dim=2)

    def score_states(self, states: Tensor) -> Tensor:
        """The normalised distances, averaged over layers or their maximum, (batch,)."""
        normalised = (self.distances(states) - self.mean[:, None]) / self.std[:, None]
        return normalised.mean(dim=0) if self.layers == "mean" else torch.amax(normalised, dim=0)
