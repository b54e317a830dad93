"""Bootstrap intervals over texts, and tests of two defenses on the same texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import binom, binomtest, bootstrap

from lightning_backdoor.benchmark.detection import auroc

#: confidence level of the intervals.
CONFIDENCE = 0.95
TAILS = [(1 - CONFIDENCE) / 2, 1 - (1 - CONFIDENCE) / 2]
RESAMPLES = 1000
#: number of resampled scores in memory at a time.
SCORES_AT_ONCE = 2_000_000


class Interval(NamedTuple):
    """Lower and upper end of an interval; NaN if there is nothing to resample."""

    low: float
    high: float


NO_INTERVAL = Interval(float("nan"), float("nan"))


def share_interval(hits: int, total: int) -> Interval:
    """Percentile bootstrap interval, over texts, of a share.

    The number of hits among texts drawn with replacement is binomial, so the percentiles are known without drawing.

    >>> share_interval(80, 100)
    Interval(low=0.72, high=0.88)
    """
    if total == 0:
        return NO_INTERVAL
    low, high = binom.ppf(TAILS, total, hits / total) / total
    return Interval(float(low), float(high))


def auroc_interval(clean: ArrayLike, poisoned: ArrayLike, seed: int = 0) -> Interval:
    """Percentile bootstrap interval of the AUROC; clean and poisoned texts are resampled separately.

    Args:
        clean: (clean texts,), scores, none of them NaN.
        poisoned: (poisoned texts,), scores, none of them NaN.
        seed: seed of the resamples.

    >>> auroc_interval([0.0, 1.0, 2.0, 3.0], [4.0, 5.0, 6.0])
    Interval(low=1.0, high=1.0)
    """
    samples = (np.asarray(clean, dtype=float), np.asarray(poisoned, dtype=float))
    if min(map(len, samples)) < 2:  # a single text has no spread
        return NO_INTERVAL
    interval = bootstrap(
        samples,
        auroc,
        n_resamples=RESAMPLES,
        batch=max(1, SCORES_AT_ONCE // sum(map(len, samples))),
        confidence_level=CONFIDENCE,
        method="percentile",
        vectorized=True,
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(float(interval.low), float(interval.high))


class Comparison(NamedTuple):
    """A comparison of the shares of hits under two defenses on the same texts.

    Attributes:
        texts: number of texts.
        difference: the first share minus the second.
        low: lower end of the interval of the difference, from pairs of texts drawn with replacement.
        high: upper end of the interval.
        p: p-value of McNemar's exact test: among the texts that are hits under exactly one of the two defenses, the
            probability of a split between the defenses at least this uneven if both were equally likely.
    """

    texts: int
    difference: float
    low: float
    high: float
    p: float


def compare(first: Sequence[bool], second: Sequence[bool], seed: int = 0) -> Comparison:
    """Compares the hits under two defenses on the same texts in the same order.

    Raises:
        ValueError: the two differ in length.

    >>> compare([True] * 8 + [False] * 2, [False] * 10)[:2]
    (10, 0.8)
    """
    n = len(first)
    if n != len(second):
        raise ValueError(f"{n} and {len(second)} hits are not from the same texts")
    if not n:
        return Comparison(0, *[float("nan")] * 4)
    only_first = sum(a and not b for a, b in zip(first, second, strict=True))
    only_second = sum(b and not a for a, b in zip(first, second, strict=True))
    shares = [only_first / n, only_second / n, 1 - (only_first + only_second) / n]
    drawn = np.random.default_rng(seed).multinomial(n, shares, size=RESAMPLES)
    low, high = np.quantile((drawn[:, 0] - drawn[:, 1]) / n, TAILS)
    p = binomtest(only_first, only_first + only_second).pvalue if only_first + only_second else 1.0
    return Comparison(n, (only_first - only_second) / n, float(low), float(high), float(p))
