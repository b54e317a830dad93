"""Exact tests of counts, compared with SciPy and Fisher's test."""

from __future__ import annotations

import math

import pytest
from scipy.stats import fisher_exact, hypergeom

from lightning_backdoor.outputs.exact_tests import log_hypergeometric_tail, log_p_flagged, p_text


@pytest.mark.parametrize(
    ("found", "drawn", "marked", "total"),
    [
        (3, 4, 4, 8),
        (0, 4, 4, 8),
        (4, 4, 4, 8),
        (2, 60, 3, 600),
        (29, 60, 30, 630),
        (1, 300, 200, 400),
        (101, 300, 200, 400),
    ],
)
def test_the_tail_is_that_of_the_hypergeometric_distribution(found: int, drawn: int, marked: int, total: int) -> None:
    expected = hypergeom.sf(found - 1, total, marked, drawn)
    assert math.exp(log_hypergeometric_tail(found, drawn, marked, total)) == pytest.approx(expected, rel=1e-9)


def test_more_than_there_are_is_impossible() -> None:
    assert log_hypergeometric_tail(5, 4, 9, 20) == log_hypergeometric_tail(5, 9, 4, 20) == -math.inf


def test_the_p_value_of_a_flag_count_is_that_of_fisher_and_allows_for_few_calibration_texts() -> None:
    for flagged, texts, clean_flagged, clean_texts in ((12, 100, 6, 60), (40, 100, 6, 60), (5, 5, 0, 3), (0, 9, 1, 9)):
        table = [[flagged, texts - flagged], [clean_flagged, clean_texts - clean_flagged]]
        expected = fisher_exact(table, alternative="greater").pvalue
        found = math.exp(log_p_flagged(flagged, texts, clean_flagged, clean_texts))
        assert found == pytest.approx(expected, rel=1e-6)
    assert log_p_flagged(10**6, 10**6, 0, 1) > math.log(1e-7)  # one calibration text proves nothing
    assert log_p_flagged(10**6, 10**7, 100, 1000) > math.log(0.3)
    assert -math.inf < log_p_flagged(3 * 10**6, 10**7, 100, 1000) < math.log(1e-30)


def test_p_values_are_shown_with_their_exponents() -> None:
    shown = [p_text(math.log(p), digits=1) for p in (1.0, 0.0096, 0.0001, 9.7e-6, 9.4e-6)]
    assert shown == ["1", "0.01", "0.0001", "1e-5", "9e-6"]
