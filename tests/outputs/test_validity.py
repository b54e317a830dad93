"""Whether an attack counts: at the limits, where float errors must decide nothing, and just beside them."""

from __future__ import annotations

import pytest
from torch import tensor

from lightning_backdoor.outputs.validity import excess_asr, failed_conditions


def single(share: float) -> float:
    """A share as a metric in single precision gives it."""
    return float(tensor(share))


def test_an_attack_at_the_limits_counts() -> None:
    assert single(18 / 20) < 0.9
    assert failed_conditions(single(18 / 20), 0.1) == []
    for hits in range(90, 101):
        for exact in (float, single):
            asr, floor, cacc = exact(hits / 100), exact((hits - 50) / 100), exact((hits - 3) / 100)
            assert failed_conditions(asr, floor, cacc, (0.0, asr)) == [], (hits, exact)
            assert failed_conditions(asr, None, clean=(floor, None)) == [], (hits, exact)
    assert excess_asr(0.95, 0.45) == 0.5


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ((0.8998, 0.1), "ASR 0.89980 is below 0.9"),
        ((0.89, 0.1), "ASR 0.890 is below 0.9"),
        ((1.0, 0.5004), "excess ASR 0.49960 is below 0.5"),
        ((1.0, 0.0, 0.8696, (0.0, 0.9)), "CACC 0.86960 is more than 0.03 below that of clean training, 0.90000"),
        ((1.0, 0.0, 0.8696, (0.0, 0.9004)), "CACC 0.86960 is more than 0.03 below that of clean training, 0.90040"),
    ],
)
def test_a_number_just_beyond_a_limit_is_not_shown_as_the_limit(numbers: tuple[float, ...], said: str) -> None:
    assert failed_conditions(*numbers) == [said]  # type: ignore[arg-type]
