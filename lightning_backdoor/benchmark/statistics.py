"""Statistics of a grid: AUROC, ROC curve, bootstrap intervals, and comparison of two defenses on the same texts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binom, binomtest, bootstrap, mannwhitneyu

from lightning_backdoor.outputs.outcomes import Outcome

#: confidence level of the intervals.
CONFIDENCE = 0.95
TAILS = [(1 - CONFIDENCE) / 2, 1 - (1 - CONFIDENCE) / 2]
RESAMPLES = 1000
#: number of resampled scores in memory at a time.
SCORES_AT_ONCE = 2_000_000
ScoreArray = NDArray[np.float64]


class Interval(NamedTuple):
    """Lower and upper end of an interval; NaN if there is nothing to resample."""

    low: float
    high: float


NO_INTERVAL = Interval(float("nan"), float("nan"))


def split_scores(outcomes: Iterable[Outcome]) -> tuple[ScoreArray, ScoreArray]:
    """Scores of the clean and of the poisoned texts, (texts,) each; texts without a score and NaN are left out."""
    scores: tuple[list[float], list[float]] = ([], [])
    for outcome in outcomes:
        if outcome.score is not None and not np.isnan(outcome.score):
            scores[outcome.poisoned].append(outcome.score)
    return np.array(scores[0], dtype=np.float64), np.array(scores[1], dtype=np.float64)


def auroc(clean: ArrayLike, poisoned: ArrayLike, axis: int = -1) -> ScoreArray:
    """The AUROC: share of the (poisoned, clean) pairs in which the poisoned score is higher, ties counting half.

    Args:
        clean: (..., clean), scores; at least one.
        poisoned: (..., poisoned), scores; at least one.
        axis: axis of the scores.

    Returns:
        (...,), AUROC from 0 to 1.

    >>> float(auroc([0.0, 1.0], [1.0, 2.0]))
    0.875
    """
    clean, poisoned = np.asarray(clean), np.asarray(poisoned)
    # the number of such pairs is the Mann-Whitney U statistic; an exact p-value would be slow and is not used
    wins = mannwhitneyu(poisoned, clean, axis=axis, method="asymptotic").statistic
    return np.asarray(wins / (clean.shape[axis] * poisoned.shape[axis]))


def roc(clean: ArrayLike, poisoned: ArrayLike) -> list[tuple[float, float]]:
    """The ROC curve: (FPR, TPR) at every threshold, from none flagged to all; equal scores are flagged together.

    Points on the straight line between their neighbours are left out, which keeps the area under the curve.

    Args:
        clean: (clean texts,), scores.
        poisoned: (poisoned texts,), scores.

    Returns:
        Points of the curve; an empty list if there are no clean or no poisoned texts.

    >>> roc([0.0, 1.0, 1.0], [1.0, 2.0, 3.0])
    [(0.0, 0.0), (0.0, 0.6666666666666666), (0.6666666666666666, 1.0), (1.0, 1.0)]
    """
    scores = [np.asarray(side, dtype=float) for side in (clean, poisoned)]
    n_clean, n_poisoned = map(len, scores)
    if not n_clean or not n_poisoned:
        return []
    values, ranks = np.unique(np.concatenate(scores), return_inverse=True)
    flagged = [
        np.concatenate([[0], np.bincount(side, minlength=len(values))[::-1].cumsum()])
        for side in (ranks[:n_clean], ranks[n_clean:])
    ]
    x, y = np.diff(flagged[0]), np.diff(flagged[1])
    bends = np.flatnonzero(x[:-1] * y[1:] != x[1:] * y[:-1]) + 1
    corners = [0, *bends.tolist(), len(values)]
    return [(float(flagged[0][i] / n_clean), float(flagged[1][i] / n_poisoned)) for i in corners]


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
    """A comparison of two defenses on the same texts by their shares of hits: attack successes or correct predictions.

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


def compare(pairs: Sequence[tuple[bool, bool]], seed: int = 0) -> Comparison:
    """Compares two defenses on the same texts, at least one.

    Args:
        pairs: per text, whether it is a hit under the first and under the second defense.
        seed: seed of the resamples.

    >>> compare([(True, False)] * 8 + [(False, False)] * 2)[:2]
    (10, 0.8)
    """
    n, counts = len(pairs), Counter(pairs)
    only_first, only_second = counts[True, False], counts[False, True]
    shares = [only_first / n, only_second / n, 1 - (only_first + only_second) / n]
    drawn = np.random.default_rng(seed).multinomial(n, shares, size=RESAMPLES)
    low, high = np.quantile((drawn[:, 0] - drawn[:, 1]) / n, TAILS)
    p = binomtest(only_first, only_first + only_second).pvalue if only_first + only_second else 1.0
    return Comparison(n, (only_first - only_second) / n, float(low), float(high), float(p))
