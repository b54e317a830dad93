"""DAN: the figures of its published program."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lightning_backdoor.defenses import Dan
from lightning_backdoor.errors import InputError
from tests.defenses.golden_states import GoldenStates, auroc, close, golden_file, kept


@pytest.mark.parametrize(("name", "token"), [("cls", "readout"), ("avg", "mean")])
@pytest.mark.parametrize(("layers", "published"), [("mean", "score_mean"), ("max", "score_min")])
def test_figures_are_those_of_the_published_program(
    name: str, token: Any, layers: Any, published: str, golden_states: GoldenStates
) -> None:
    golden = golden_file("dan")
    expected, held_out = golden[name], golden["normalising_validation_rows"]
    fitted = sorted(set(range(200)) - set(held_out))
    reference, scored = golden_states.reference[token], golden_states.scored[token]
    defense = Dan(layers=layers, token=token)
    labels = golden_states.labels[fitted]
    kept(defense, defense.fit_states(reference[:, fitted], labels, reference[:, held_out]))
    close(torch.stack([defense.mean, defense.std], dim=1), expected["normalising_mean_std_by_layer"])
    close(defense.distances(scored).mT, expected["distances_by_text_and_layer"])
    scores = defense.score_states(scored)
    close(-scores, expected[published], absolute=2e-4)  # of a standard deviation
    assert auroc(scores) == pytest.approx(expected[published.replace("score", "auroc")])
    if layers == "mean":
        of_held_out = defense.score_states(reference[:, held_out])
        close(-of_held_out, expected["score_mean_of_normalising_rows"], absolute=1e-4)


@pytest.mark.parametrize(
    "options", [{"layers": "median"}, {"token": "first"}, {"shrinkage": 0.0}, {"held_out": 1.0}, {"fpr": 1.0}]
)
def test_values_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        Dan(**options)


def test_held_out_rows_that_do_not_differ_are_refused() -> None:
    states = torch.randn(3, 6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.tensor([0, 1, 0, 1, 0, 1])
    with pytest.raises(InputError, match=r"^held_out: the distances of 2 held-out rows do not differ; give more"):
        Dan().fit_states(states, labels, states[:, :1].repeat(1, 2, 1))
    with pytest.raises(InputError, match=r"^reference rows: their states are all equal in 2 of 2 layers; give diff"):
        Dan().fit_states(states[:, :2], labels[:2], states)
