"""Spectral signatures: scores against a singular value decomposition, what is removed, and bad input."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from lightning_backdoor.data.cleaning import LabelledText, TrustedRows
from lightning_backdoor.defenses.spectral_signatures import SpectralSignatures, spectral_scores
from lightning_backdoor.errors import InputError
from tests.support.tiny import DECODER, SENTENCES, loaded

NO_TRUSTED = TrustedRows([], [])


def test_scores_are_those_of_the_algorithm() -> None:
    states = np.random.default_rng(0).normal(size=(30, 6)) * np.arange(1, 7)
    centred = states - states.mean(axis=0)
    first = np.linalg.svd(centred)[2][0]
    expected = [float(row @ first) ** 2 for row in centred]
    assert spectral_scores(torch.from_numpy(states)).tolist() == pytest.approx(expected, rel=1e-9)


def test_rows_that_shift_their_label_go() -> None:
    """Of each label a share of 1.5 times the bound is removed, poisoned or not."""
    rng = torch.Generator().manual_seed(0)
    labels = torch.tensor([0, 1] * 50)
    poisoned = torch.zeros(100, dtype=torch.bool)
    poisoned[[1, 5, 9, 21, 33]] = True
    states = torch.randn(100, 8, generator=rng) + 20 * poisoned[:, None]
    marks = SpectralSignatures(poisoned_share=0.1).suspicious(states, labels)
    assert marks[poisoned].all()
    assert [int(marks[labels == label].sum()) for label in (0, 1)] == [7, 7]


@pytest.mark.parametrize("kind", ["bert", DECODER])
def test_the_order_of_the_rows_does_not_matter(kind: str, tiny_folder: Callable[[str], str]) -> None:
    rows = [LabelledText(text, i % 2) for i, text in enumerate(SENTENCES)]
    victim = loaded(tiny_folder(kind))
    kept = SpectralSignatures().clean(rows, NO_TRUSTED, victim)
    assert kept.count(None) == 2
    assert SpectralSignatures().clean(rows[::-1], NO_TRUSTED, victim) == kept[::-1]


def test_bad_input_is_refused(tiny_folder: Callable[[str], str]) -> None:
    with pytest.raises(InputError, match=r"^poisoned_share: 0 is not a share above 0; give one, such as 0.1$"):
        SpectralSignatures(0)
    with pytest.raises(
        InputError, match=r"^factor: 1.5 times the poisoned_share 0.4 is not above 0 and at most a half"
    ):
        SpectralSignatures(0.4)
    rows = [LabelledText("a", 0), LabelledText("b", 0), LabelledText("c", 1)]
    with pytest.raises(InputError, match=r"^data_defense: SpectralSignatures needs at least 2 .*, label 1 has 1; give"):
        SpectralSignatures().clean(rows, NO_TRUSTED, loaded(tiny_folder("bert")))
