"""How sure the numbers are: bootstrap intervals over texts, and defenses compared on the same texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binom, binomtest, bootstrap, rankdata

#: share of resamples that an interval covers.
CONFIDENCE = 0.95
RESAMPLES = 1000
#: scores held at a time.
AT_ONCE = 2_000_000


class Interval(NamedTuple):
    """Lower and upper end; nan where there is nothing to resample."""

    low: float
    high: float


NOTHING = Interval(float("nan"), float("nan"))


def share_interval(hits: int, of: int) -> Interval:
    """Percentile bootstrap interval of a share over texts.

    Hits among texts drawn with replacement are binomial, so that the percentiles are taken without drawing.

    >>> share_interval(80, 100)
    Interval(low=0.72, high=0.88)
    """
    if of == 0:
        return NOTHING
    tail = (1 - CONFIDENCE) / 2
    low, high = binom.ppf([tail, 1 - tail], of, hits / of) / of
    return Interval(float(low), float(high))


def auroc_interval(clean: ArrayLike, poisoned: ArrayLike, seed: int = 0) -> Interval:
    """Percentile bootstrap interval of AUROC, clean and poisoned texts drawn each among their own.

    Args:
        clean: (clean texts,), their scores; those that are no number are left out.
        poisoned: (poisoned texts,), theirs.
        seed: of the resamples.

    >>> auroc_interval([0.0, 1.0, 2.0, 3.0], [4.0, 5.0, 6.0])
    Interval(low=1.0, high=1.0)
    """
    of_clean, of_poisoned = (np.asarray(scores, dtype=float) for scores in (clean, poisoned))
    samples = (of_clean[~np.isnan(of_clean)], of_poisoned[~np.isnan(of_poisoned)])
    if min(map(len, samples)) < 2:  # one text has no spread
        return NOTHING
    found = bootstrap(
        samples,
        _auroc,
        n_resamples=RESAMPLES,
        batch=max(1, AT_ONCE // sum(map(len, samples))),
        confidence_level=CONFIDENCE,
        method="percentile",
        vectorized=True,
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(float(found.low), float(found.high))


class Comparison(NamedTuple):
    """A share of texts under one defense against that under another, on the same texts.

    Attributes:
        texts: that both have.
        difference: the first share less the second.
        interval: of the difference, pairs of texts drawn with replacement.
        p: of McNemar's exact test: how probable a split of the texts that only one of them hits is, at least as uneven
            as this, if each were as likely to be hit by either.
    """

    texts: int
    difference: float
    interval: Interval
    p: float


def compare(first: Sequence[bool], second: Sequence[bool], seed: int = 0) -> Comparison:
    """Two defenses on the same texts, in the same order: hits of one against hits of the other.

    Raises:
        ValueError: they are not as many.

    >>> compare([True] * 8 + [False] * 2, [False] * 10)[:2]
    (10, 0.8)
    """
    if len(first) != len(second):
        raise ValueError(f"{len(first)} and {len(second)} hits are not of the same texts")
    if not first:
        return Comparison(0, float("nan"), NOTHING, float("nan"))
    only_first = sum(a and not b for a, b in zip(first, second, strict=True))
    only_second = sum(b and not a for a, b in zip(first, second, strict=True))
    n = len(first)
    drawn = np.random.default_rng(seed).multinomial(
        n, [only_first / n, only_second / n, 1 - (only_first + only_second) / n], size=RESAMPLES
    )
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile((drawn[:, 0] - drawn[:, 1]) / n, [tail, 1 - tail])
    p = binomtest(only_first, only_first + only_second).pvalue if only_first + only_second else 1.0
    return Comparison(n, (only_first - only_second) / n, Interval(float(low), float(high)), float(p))


def _auroc(clean: NDArray[np.float64], poisoned: NDArray[np.float64], axis: int = -1) -> NDArray[np.float64]:
    ranks = rankdata(np.concatenate([clean, poisoned], axis=axis), axis=axis)
    n_clean, n_poisoned = clean.shape[axis], poisoned.shape[axis]
    of_poisoned = np.take(ranks, range(n_clean, n_clean + n_poisoned), axis=axis).sum(axis=axis)
    return np.asarray((of_poisoned - n_poisoned * (n_poisoned + 1) / 2) / (n_clean * n_poisoned))
