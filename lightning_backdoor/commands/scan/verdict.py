"""The verdict of a scan on the model: whether more texts are flagged than clean texts would be."""

from __future__ import annotations

import math

#: below this p-value the verdict says that more texts are flagged than clean texts explain.
SIGNIFICANT = 0.01


def p_value(flagged: int, texts: int, clean_flagged: int, clean_texts: int) -> float:
    """The probability that at least this many texts are flagged if they are as clean as the calibration texts.

    Fisher's exact test, one-sided. Where the threshold is the score of a calibration text, this is also the exact
    distribution of the number of clean texts above it: unlike a binomial test of the budget it allows for a threshold
    that was set on few texts, or for very many scanned texts. Calibration and scanned texts are assumed to be drawn
    from the same source.

    Args:
        flagged: number of flagged texts.
        texts: number of scanned texts.
        clean_flagged: number of calibration texts that the threshold flags, or that the budget allows it to flag.
        clean_texts: number of calibration texts that set the threshold.

    Returns:
        The p-value; 0 below about 1e-308.

    >>> round(p_value(flagged=3, texts=4, clean_flagged=1, clean_texts=4), 4)  # a table of [[3, 1], [1, 3]]
    0.2429
    >>> round(p_value(flagged=90, texts=90, clean_flagged=0, clean_texts=1), 4)  # one text says little
    0.011
    """
    if not flagged:
        return 1.0
    drawn = flagged + clean_flagged
    ways = [
        _log_choose(clean_texts, clean) + _log_choose(texts, drawn - clean)
        for clean in range(max(0, drawn - texts), clean_flagged + 1)
    ]
    largest = max(ways)
    total = sum(math.exp(way - largest) for way in ways)
    return min(1.0, math.exp(largest + math.log(total) - _log_choose(clean_texts + texts, drawn)))


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
