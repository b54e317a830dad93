"""Spectral signatures (arXiv 1811.00636): removes the rows of each label that are extreme in its main direction.

Poisoned rows shift the mean of their label's hidden states, and with it the direction in which these vary most.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_backdoor.defenses.row_states import StateFilter
from lightning_backdoor.errors import InputError


def spectral_scores(states: Tensor) -> Tensor:
    """The squared projection of each centred state on their first right singular vector; (rows,), float64.

    Args:
        states: (rows, hidden size), the hidden states of one label.

    >>> spectral_scores(torch.tensor([[0.0, 1.0], [0.0, -1.0], [3.0, 0.0], [-3.0, 0.0]]))
    tensor([0., 0., 9., 9.], dtype=torch.float64)
    """
    centred = states.double() - states.double().mean(dim=0)
    first: Tensor = torch.linalg.eigh(centred.T @ centred).eigenvectors[:, -1]
    return (centred @ first).square()


class SpectralSignatures(StateFilter):
    """Spectral signatures (arXiv 1811.00636): removes the rows with the highest spectral scores of each label.

    Per label, the hidden states R from which the victim's head reads are centred by their mean r, and a row's score is
    ((R_i - r) · v)², where v is the first right singular vector of the centred states (Algorithm 1). Of each label, the
    share ``1.5 * poisoned_share`` of the rows with the highest scores is removed: also of labels without poisoned rows,
    since the defense does not know which label is the target.

    Args:
        poisoned_share: upper bound on the poisoned share of a label's rows, above 0; published for 0.05 and 0.1.
        factor: rows that are removed per row of this bound; published: 1.5. The product is at most a half.

    Raises:
        InputError: a value is out of range (here); there is no victim, or a label has a single row (in ``clean``).

    Example::

        data = BackdoorDataModule(source, data_defense=SpectralSignatures(), victim="undefended.ckpt")
    """

    fewest_rows = 2

    def __init__(self, poisoned_share: float = 0.1, factor: float = 1.5) -> None:
        if not poisoned_share > 0:
            raise InputError("poisoned_share", f"{poisoned_share} is not a share above 0", "give one, such as 0.1")
        if not 0 < poisoned_share * factor <= 0.5:
            problem = f"{factor} times the poisoned_share {poisoned_share} is not above 0 and at most a half"
            raise InputError("factor", problem, "give 1.5 and a lower share")
        self.poisoned_share = poisoned_share
        self.factor = factor

    def suspicious(self, states: Tensor, labels: Tensor) -> Tensor:
        """Marks the rows of each label with the highest scores."""
        marks = torch.zeros_like(labels, dtype=torch.bool)
        for label in set(labels.tolist()):
            rows = (labels == label).nonzero().flatten()
            count = int(self.factor * self.poisoned_share * len(rows) + 1e-9)  # 1.5 * 0.1 * 20 is 3.0000000000000004
            scores = spectral_scores(states[rows])
            marks[rows[scores.argsort(descending=True, stable=True)[:count]]] = True
        return marks
