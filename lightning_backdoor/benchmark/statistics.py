"""Statistics of a grid: AUROC, ROC curve, intervals over texts, and comparison of two defenses on the same texts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import scipy  # its module stats, which takes a second to import, is imported when it is first used
from numpy.typing import ArrayLike, NDArray

from lightning_backdoor.outputs.outcomes import Outcome

#: confidence level of the intervals.
CONFIDENCE = 0.95
TAILS = [(1 - CONFIDENCE) / 2, 1 - (1 - CONFIDENCE) / 2]
RESAMPLES = 1000
#: two defenses, or two shares, differ if the p-value is below this.
SIGNIFICANT = 0.05
#: number of resampled scores in memory at a time.
SCORES_AT_ONCE = 2_000_000
ScoreArray = NDArray[np.float64]


class Interval(NamedTuple):
    """Lower and upper end of an interval; NaN if there are no texts."""

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
    wins = scipy.stats.mannwhitneyu(poisoned, clean, axis=axis, method="asymptotic").statistic
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
    """Wilson's score interval, over texts, of a share; it has a width for shares of 0 and 1 as well.

    >>> low, high = share_interval(50, 50)
    >>> round(low, 3), high
    (0.929, 1.0)
    """
    if total == 0:
        return NO_INTERVAL
    interval = scipy.stats.binomtest(hits, total).proportion_ci(CONFIDENCE, method="wilson")
    return Interval(float(interval.low), float(interval.high))


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
    interval = scipy.stats.bootstrap(
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
    """A comparison of two defenses on the same texts by their shares of hits, or by their AUROC.

    Hits are what a metric counts, such as attack successes, correct predictions or flagged texts.

    Attributes:
        texts: number of texts.
        difference: the first share or AUROC minus the second, mean over seeds.
        low: lower end of the 95 % interval of the difference, over texts.
        high: upper end of the interval.
        p: p-value of the paired test, two-sided.
    """

    texts: int
    difference: float
    low: float
    high: float
    p: float


def compare(pairs: Sequence[tuple[float, float]], seed: int = 0) -> Comparison:
    """Compares two defenses by their shares of hits on the same texts, at least one.

    The test is McNemar's exact test: among the texts that are hits under exactly one of the two defenses, the
    probability of a split between the defenses at least this uneven if both were equally likely. With several seeds a
    text counts once, for the defense under which it is a hit with more seeds (an exact sign test), since the same text
    under other seeds is not independent. The interval is from texts drawn with replacement.

    Args:
        pairs: per text, whether it is a hit under the first and under the second defense; with several seeds, the
            shares of the seeds with which it is one.
        seed: seed of the resamples.

    >>> compare([(True, False)] * 8 + [(False, False)] * 2)[:2]
    (10, 0.8)
    """
    n, counts = len(pairs), Counter(float(first) - float(second) for first, second in pairs)
    values = [*dict.fromkeys([1.0, -1.0, *sorted(counts.keys() - {0.0})]), 0.0]
    shares = np.array([counts[value] / n for value in values[:-1]])
    drawn = np.random.default_rng(seed).multinomial(n, [*shares, max(0.0, 1 - shares.sum())], size=RESAMPLES)
    low, high = np.quantile(drawn @ np.array(values) / n, TAILS)
    more, less = (sum(count for value, count in counts.items() if value * sign > 0) for sign in (1, -1))
    p = min(1.0, 2 * scipy.stats.binom.cdf(min(more, less), more + less, 0.5))
    difference = sum(count * value for value, count in counts.items()) / n
    return Comparison(n, difference, float(low), float(high), float(p))


class PairedScores(NamedTuple):
    """The scores of two defenses on the same rows with one seed; each array is (rows,).

    Attributes:
        texts: index of each row's text; a clean row and the poisoned row made from it share it.
        poisoned: whether a row is poisoned.
        first: scores of the first defense.
        second: scores of the second defense.
    """

    texts: NDArray[np.int64]
    poisoned: NDArray[np.bool_]
    first: ScoreArray
    second: ScoreArray


def compare_auroc(seeds: Iterable[PairedScores]) -> Comparison | None:
    """Compares two defenses by their AUROC on the same rows.

    The test is DeLong's, with the components of a text summed over seeds and over its clean and its poisoned row before
    their variance is taken, since these are not independent. As with an exact test, few texts cannot give a small
    p-value: it is at least that of a sign test on as many texts, all in favour of one defense.

    Args:
        seeds: the scores with each seed; seeds without clean or without poisoned rows are left out.

    Returns:
        The comparison; None if no seed has both clean and poisoned rows.
    """
    used = [seed for seed in seeds if seed.poisoned.any() and not seed.poisoned.all()]
    if not used:
        return None
    parts = [
        _auroc_components(seed.first, seed.poisoned) - _auroc_components(seed.second, seed.poisoned) for seed in used
    ]
    means = [part[seed.poisoned].mean() for part, seed in zip(parts, used, strict=True)]
    texts, places = np.unique(np.concatenate([seed.texts for seed in used]), return_inverse=True)
    # what each row adds to the difference, above the mean
    added = [
        (part - mean) / np.where(seed.poisoned, seed.poisoned.sum(), (~seed.poisoned).sum()) / len(used)
        for part, mean, seed in zip(parts, means, used, strict=True)
    ]
    by_text = np.bincount(places, np.concatenate(added), minlength=len(texts))
    error = float(np.sqrt(np.square(by_text).sum() * len(texts) / max(len(texts) - 1, 1)))
    difference = float(np.mean(means))
    p = float(2 * scipy.stats.norm.sf(abs(difference) / max(error, 1e-300)))  # 1 if both are 0
    rows = [{*np.concatenate([seed.texts[seed.poisoned == side] for seed in used]).tolist()} for side in (False, True)]
    p = max(p, 2.0 ** (1 - min(map(len, rows))))
    reach = float(scipy.stats.norm.ppf(TAILS[1])) * error
    return Comparison(sum(map(len, rows)), difference, difference - reach, difference + reach, min(p, 1.0))


def _auroc_components(scores: ScoreArray, poisoned: NDArray[np.bool_]) -> ScoreArray:
    """Per row, the share of the rows of the other side that it is in the right order with, ties counting half."""
    among_all = scipy.stats.rankdata(scores)
    parts = np.empty(len(scores))
    for side in (False, True):
        chosen = poisoned == side
        below = (among_all[chosen] - scipy.stats.rankdata(scores[chosen])) / (~chosen).sum()
        parts[chosen] = below if side else 1 - below
    return parts


def is_more_frequent(hits: int, total: int, other_hits: int, other_total: int) -> bool:
    """Whether a share is larger than another one of other texts, by Fisher's exact test, one-sided, at 5 %.

    >>> is_more_frequent(9, 10, 1, 10), is_more_frequent(1, 10, 0, 10)
    (True, False)
    """
    table = [[hits, total - hits], [other_hits, other_total - other_hits]]
    return bool(scipy.stats.fisher_exact(table, alternative="greater").pvalue < SIGNIFICANT)
