"""Intervals against plain resampling, the paired test against its definition."""

from __future__ import annotations

import math

import numpy as np
import pytest
from torch import tensor
from torchmetrics.functional.classification import binary_auroc

from lightning_backdoor.benchmark.statistics import auroc_interval, compare, share_interval


def test_the_interval_of_a_share_is_that_of_texts_drawn_anew() -> None:
    rng = np.random.default_rng(0)
    hits = rng.random(150) < 0.8
    drawn = rng.choice(hits, size=(20_000, 150)).mean(axis=1)
    low, high = share_interval(int(hits.sum()), 150)
    assert low == pytest.approx(np.quantile(drawn, 0.025), abs=1.01 / 150)
    assert high == pytest.approx(np.quantile(drawn, 0.975), abs=1.01 / 150)


def test_what_nobody_or_everybody_hits_has_no_spread_and_nothing_has_no_interval() -> None:
    assert share_interval(0, 50) == (0, 0)
    assert share_interval(50, 50) == (1, 1)
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
