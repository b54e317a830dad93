"""Intervals against plain resampling, the paired test against its definition."""

from __future__ import annotations

import math

import numpy as np
import pytest
from torch import tensor
from torchmetrics.functional.classification import binary_auroc

from lightning_backdoor.benchmark.statistics import (
    PairedScores,
    auroc,
    auroc_interval,
    compare,
    compare_auroc,
    share_interval,
)


@pytest.mark.parametrize("hits", [0, 1, 120, 150])
def test_the_ends_of_the_interval_of_a_share_are_the_shares_that_it_would_be_unlikely_under(hits: int) -> None:
    low, high = share_interval(hits, 150)
    assert 0 <= low <= hits / 150 <= high <= 1
    for end in (low, high):
        if 0 < end < 1:  # by the score test
            assert abs(hits / 150 - end) == pytest.approx(1.959964 * math.sqrt(end * (1 - end) / 150))


def test_a_share_of_nothing_has_no_interval() -> None:
    assert all(math.isnan(end) for end in share_interval(0, 0))


def test_the_interval_of_auroc_is_that_of_texts_drawn_anew() -> None:
    rng = np.random.default_rng(0)
    clean, poisoned = rng.normal(0, 1, 120), rng.normal(1, 1, 60)
    poisoned[:5] = -np.inf  # texts of which nothing has a score
    labels = tensor([0] * 120 + [1] * 60)
    found = []
    for _ in range(2000):
        scores = np.concatenate([rng.choice(clean, 120), rng.choice(poisoned, 60)])
        ranks = np.unique(scores, return_inverse=True)[1]
        found.append(float(binary_auroc(tensor(ranks / len(ranks)), labels)))
    low, high = auroc_interval(clean, poisoned)
    assert low == pytest.approx(np.quantile(found, 0.025), abs=0.01)
    assert high == pytest.approx(np.quantile(found, 0.975), abs=0.01)
    assert auroc_interval(clean, poisoned) == (low, high)


def test_mcnemar_counts_the_texts_that_one_alone_hits() -> None:
    pairs = [(True, False)] * 9 + [(False, True)] * 1 + [(True, True)] * 20 + [(False, False)] * 10
    found = compare(pairs)
    # 9 against 1 of 10 fair coins: twice the chance of at most one
    assert found.p == pytest.approx(2 * (1 + 10) / 2**10)
    assert found.difference == pytest.approx(8 / 40)
    assert 0 < found.low < found.difference < found.high
    assert compare([(second, first) for first, second in pairs]).difference == -found.difference


def test_two_that_hit_the_same_do_not_differ() -> None:
    assert compare([(True, True), (False, False), (True, True)])[1:] == (0, 0, 0, 1)


def test_a_text_under_several_seeds_counts_once() -> None:
    # of six texts, five are hits under the first defense with more seeds, and one under the second
    pairs = [(1.0, 1 / 3)] * 3 + [(2 / 3, 1 / 3)] * 2 + [(0.0, 1.0)] + [(1 / 3, 1 / 3)] * 4
    found = compare(pairs)
    assert found.p == pytest.approx(2 * (1 + 6) / 2**6)
    assert found.texts == 10
    assert found.difference == pytest.approx((3 * 2 / 3 + 2 / 3 - 1) / 10)
    assert found.low < found.difference < found.high


def paired(rng: np.random.Generator, texts: int, by: tuple[float, float]) -> PairedScores:
    """Scores of two defenses, alike for the same text, that raise poisoned texts by these amounts."""
    both = np.tile(np.arange(texts), 2)
    poisoned = np.repeat([False, True], texts)
    of_text = np.tile(rng.normal(0, 0.7, texts), 2)
    first, second = (of_text + rng.normal(0, 0.7, 2 * texts) + poisoned * shift for shift in by)
    return PairedScores(both, poisoned, first, second)


def test_two_auroc_are_compared_as_texts_drawn_with_replacement_would_be() -> None:
    rng = np.random.default_rng(0)
    scores = paired(rng, 80, (1.5, 0.8))
    found = compare_auroc([scores])
    assert found is not None
    areas = [float(auroc(side[~scores.poisoned], side[scores.poisoned])) for side in (scores.first, scores.second)]
    assert found.texts == 160
    assert found.difference == pytest.approx(areas[0] - areas[1])
    drawn = []
    for _ in range(400):
        chosen = rng.integers(0, 80, 80)
        clean, poisoned = (side[chosen] for side in np.split(np.stack([scores.first, scores.second], 1), 2))
        drawn.append(float(auroc(clean[:, 0], poisoned[:, 0]) - auroc(clean[:, 1], poisoned[:, 1])))
    assert found.low == pytest.approx(np.quantile(drawn, 0.025), abs=0.025)
    assert found.high == pytest.approx(np.quantile(drawn, 0.975), abs=0.025)


def test_two_equally_good_detectors_seldom_differ_with_one_seed_or_three() -> None:
    rng = np.random.default_rng(0)
    for seeds in (1, 3):
        found = [compare_auroc([paired(rng, 40, (1, 1)) for _ in range(seeds)]) for _ in range(200)]
        assert 0.01 <= np.mean([one is not None and one.p < 0.05 for one in found]) <= 0.09


def test_few_texts_and_equal_scores_show_no_difference_of_auroc() -> None:
    few = PairedScores(np.arange(5), np.arange(5) == 4, np.arange(5.0), -np.arange(5.0))
    found = compare_auroc([few])
    assert found is not None
    assert (found.difference, found.p) == (1.0, 1.0)  # of one poisoned text
    same = paired(np.random.default_rng(0), 20, (1, 1))
    equal = compare_auroc([same._replace(second=same.first)])
    assert equal is not None
    assert (equal.difference, equal.p) == (0.0, 1.0)
    assert compare_auroc([same._replace(poisoned=np.zeros(40, dtype=bool))]) is None
