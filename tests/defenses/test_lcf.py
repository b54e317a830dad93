"""LCF: the figures of its published program."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lightning_backdoor.defenses import LCF
from lightning_backdoor.defenses.mahalanobis import ledoit_wolf
from lightning_backdoor.errors import InputError
from tests.defenses.golden_states import GoldenStates, auroc, close, golden_file, kept


@pytest.mark.parametrize("name", ["last", "cls"])
def test_figures_are_those_of_the_published_program(name: str, golden_states: GoldenStates) -> None:
    token: Any = {"last": "last", "cls": "readout"}[name]
    # the first token's embedding is the same in every text: its first change has few digits
    digits = {"last": 1.0, "cls": 10.0}[name]
    expected, defense = golden_file("lcf")[name], LCF(token=token)
    reference, scored = golden_states.reference[token], golden_states.scored[token]
    kept(defense, defense.fit_states(reference))
    moments = torch.stack([defense.length_mean, defense.length_std], dim=1)
    close(moments, expected["a_mean_std_by_layer"])
    z = defense.layer_scores(scored)
    lengths = z * defense.length_std[:, None] + defense.length_mean[:, None]
    close(lengths.mT, expected["a_by_text_and_layer"], relative=1e-4 * digits)
    close(z.mT, expected["z_by_text_and_layer"], absolute=2e-4 * digits)  # of a standard deviation
    close(defense.precision, expected["precision"], relative=1e-4 * digits, absolute=1e-4 * digits)
    scores = defense.score_states(scored)
    close(scores, expected["score"], relative=1e-4 * digits)
    assert auroc(scores) == pytest.approx(expected["auroc"])
    of_reference = defense.layer_scores(reference).mT
    assert ledoit_wolf(of_reference)[1] == pytest.approx(expected["shrinkage"], rel=1e-4)
    left_out = torch.stack([distance_from_others(of_reference, row) for row in range(200)])
    assert float(left_out.quantile(0.9)) == pytest.approx(expected["threshold_leave_one_out"], rel=1e-4)


def distance_from_others(rows: torch.Tensor, row: int) -> torch.Tensor:
    others = torch.cat([rows[:row], rows[row + 1 :]])
    difference = rows[row] - others.mean(dim=0)
    square: torch.Tensor = difference @ torch.linalg.inv(ledoit_wolf(others)[0]) @ difference
    return square.sqrt()


def test_rows_whose_states_change_alike_are_refused() -> None:
    with pytest.raises(InputError, match=r"^reference rows: the hidden states of 3 clean rows change alike; give more"):
        LCF().fit_states(torch.ones(3, 3, 4).double())
