"""LCF, the layerwise convergence fingerprint (arXiv 2604.24542): how far each layer moves a text's hidden state.

The changes of the state from layer to layer are compared with those of clean texts: within each layer by a diagonal
covariance, and then over the vector of all layers by a shrunk one. The method was made for decoders, where it reads the
last token. In encoders the head reads the first token, whose states come with the victim's own forward pass;
``token="last"`` reads the last one there as well, which told more on a MiniLM with a one-word trigger (AUROC 0.92
against 0.80) and takes a forward pass of its own.

The published program takes its threshold by leaving out each reference row in turn, but only in the last of three
stages: the row stays in the means and deviations of the stages before it, and the threshold is a little low. Here the
threshold comes from rows that no stage has seen. As published, a text whose layers move unusually little is suspicious
as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

from lightning_backdoor.batch import Victim
from lightning_backdoor.defenses.hidden_states import Reference, StateDefense, check_count
from lightning_backdoor.defenses.mahalanobis import ledoit_wolf
from lightning_backdoor.errors import InputError

#: lower limit of the standard deviation of an entry, as published.
FLOOR = 1e-8


class LCF(StateDefense):
    """LCF (arXiv 2604.24542): rejects texts whose hidden state moves unlike that of clean texts from layer to layer.

    With ``d_l = h_(l+1) - h_l``, from the embeddings on, and entry-wise mean and standard deviation of clean rows,
    ``a_l = |(d_l - mean) / std|``; with mean and standard deviation of ``a_l`` over these rows,
    ``z_l = (a_l - mean) / std``. A text's score is ``sqrt((z - m)' P (z - m))``, with m the mean of z over these rows,
    which is 0, and P the inverse of its Ledoit-Wolf covariance.

    Args:
        token: whose state is followed: ``readout``, the token that the head reads (the first one in encoders, the last
            one in decoders), or the ``last`` token.
        fpr: share of clean texts, above 0 and below 1, that the threshold may flag.
        seed: not used, since nothing is drawn at random.

    Raises:
        InputError: a value is out of range.

    Example::

        defense = LCF()
        defense.learn(victim, clean_reference_batches)  # 200 rows in the paper
        defense.calibrate(victim, clean_threshold_batches)
        scores = defense.score(victim, batch)  # scores.text: (batch,)
    """

    tokens: ClassVar = ("readout", "last")
    learned: ClassVar = ("change_mean", "change_std", "length_mean", "length_std", "precision")
    change_mean: Tensor
    change_std: Tensor
    length_mean: Tensor
    length_std: Tensor
    precision: Tensor

    def __init__(
        self, token: Literal["readout", "last"] = "readout", fpr: float = 0.10, seed: int | None = None
    ) -> None:
        super().__init__(fpr, seed, token)

    def check_reference(self, labels: Sequence[int], classes: int) -> None:
        """Checks that there are more rows than classes; their labels are not used."""
        check_count(labels, classes)

    def fit(self, victim: Victim, reference: Reference) -> dict[str, Tensor]:
        """Fits the statistics of the changes of all rows, and of the length of each row's changes."""
        return self.fit_states(reference.states)

    def fit_states(self, states: Tensor) -> dict[str, Tensor]:
        """What is learned from states, (layers + 1, rows, hidden size), float64.

        Raises:
            InputError: the rows do not differ.
        """
        changes = states.diff(dim=0)
        mean = changes.mean(dim=1)
        std = changes.std(dim=1, correction=0).clamp(min=FLOOR)
        lengths = standardised_lengths(changes, mean, std)
        length_std = lengths.std(dim=1, correction=0)
        if not (length_std > 0).all():
            problem = f"the hidden states of {lengths.shape[1]} clean rows change alike"
            raise InputError("reference rows", problem, "give more rows, of different texts")
        length_mean = lengths.mean(dim=1)
        covariance, _ = ledoit_wolf(((lengths - length_mean[:, None]) / length_std[:, None]).mT)
        statistics = mean, std, length_mean, length_std, torch.linalg.pinv(covariance, hermitian=True)
        return dict(zip(self.learned, statistics, strict=True))

    def layer_scores(self, states: Tensor) -> Tensor:
        """z, the standardised length of each layer's change, (layers, batch)."""
        lengths = standardised_lengths(states.diff(dim=0), self.change_mean, self.change_std)
        return (lengths - self.length_mean[:, None]) / self.length_std[:, None]

    def score_states(self, states: Tensor) -> Tensor:
        """The Mahalanobis distance of the layers' scores from those of clean texts, (batch,)."""
        z = self.layer_scores(states)
        squares: Tensor = (z * (self.precision @ z)).sum(dim=0)
        return squares.clamp(min=0).sqrt()


def standardised_lengths(changes: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """The Euclidean length of each change after standardising its entries.

    Args:
        changes: (layers, batch, hidden size).
        mean: (layers, hidden size).
        std: (layers, hidden size).

    Returns:
        (layers, batch).

    >>> standardised_lengths(torch.tensor([[[4.0, 9.0]]]), torch.tensor([[1.0, 1.0]]), torch.tensor([[1.0, 2.0]]))
    tensor([[5.]])
    """
    lengths: Tensor = ((changes - mean[:, None]) / std[:, None]).norm(dim=2)
    return lengths
