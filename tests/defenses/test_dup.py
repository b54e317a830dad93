"""DUP's detector: the figures of its published program."""

from __future__ import annotations

import pytest
import torch

from lightning_backdoor.defenses import Dup
from lightning_backdoor.defenses.dup import calinski_harabasz, spectral_share
from lightning_backdoor.errors import InputError
from tests.defenses.golden_states import GoldenStates, auroc, close, golden_file, kept


@pytest.mark.parametrize("alpha", [0.9, 1.0])
def test_figures_are_those_of_the_published_program(alpha: float, golden_states: GoldenStates) -> None:
    golden = golden_file("dup_ms")
    reference, scored = golden_states.reference["readout"], golden_states.scored["readout"]
    fitted, others = golden["fit_validation_rows"], golden["threshold_validation_rows"]
    labels = golden_states.labels[fitted]
    defense = Dup(alpha=alpha)
    kept(defense, defense.fit_states(reference[:, fitted], labels, reference[:, others]))
    close(calinski_harabasz(reference[1:, fitted], labels), golden["calinski_harabasz_by_layer"])
    assert defense.chosen.tolist() == golden["layers_chosen_from_0"]
    distance, spectral = defense.parts(scored)
    close(distance, golden["m"])
    close(spectral, golden["s"])
    expected, scores = golden[f"alpha_{alpha}"], defense.score_states(scored)
    close(scores, expected["score"], absolute=2e-5)  # of a standard deviation
    assert auroc(scores) == pytest.approx(expected["auroc"])
    of_others = defense.score_states(reference[:, others])
    assert float(of_others.quantile(0.95)) == pytest.approx(expected["threshold"], rel=1e-4)
    if "score_of_threshold_rows" in expected:
        close(of_others, expected["score_of_threshold_rows"], absolute=2e-5)


def test_the_spectral_share_is_that_of_singular_values() -> None:
    states = torch.randn(6, 5, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for text, share in enumerate(spectral_share(states).tolist()):
        values = torch.linalg.svdvals(states[1:, text] - states[:-1, text])
        assert share == pytest.approx(float(values[0] / values.sum()))


def test_the_spectral_share_of_a_state_that_does_not_move_is_one() -> None:
    states = torch.randn(1, 3, 9, generator=torch.Generator().manual_seed(0)).expand(6, 3, 9)
    assert spectral_share(states).tolist() == [1.0] * 3
    assert spectral_share(states[:1]).tolist() == [1.0] * 3  # of a network with one layer


@pytest.mark.parametrize(
    "options", [{"alpha": 1.5}, {"layers": 0}, {"shrinkage": 0.0}, {"held_out": 1.0}, {"fpr": 0.0}]
)
def test_values_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        Dup(**options)  # type: ignore[arg-type]
