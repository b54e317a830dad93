"""Z-Def (arXiv 2305.11596): removes rows that have a word which is far more frequent in their label than elsewhere.

A trigger correlates with the target label more than any word of clean texts does. Nothing is trained, and no victim is
needed.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
from lightning_utilities.core.rank_zero import rank_zero_info

from lightning_backdoor.batch import Victim
from lightning_backdoor.data.cleaning import DataDefense, LabelledText, TrustedRows
from lightning_backdoor.errors import InputError
from lightning_backdoor.words import words

#: words that follow each other in a text.
NGram = tuple[str, ...]
SHOWN = 10


def ngrams(text: str, size: int) -> list[NGram]:
    """The distinct n-grams of a text, in the order of their first occurrence.

    >>> ngrams("so good , so good", 2)
    [('so', 'good'), ('good', ','), (',', 'so')]
    """
    parts = words(text)
    return list(dict.fromkeys(tuple(parts[i : i + size]) for i in range(len(parts) - size + 1)))


def z_scores(rows: Sequence[LabelledText], size: int, uniform: bool = False) -> dict[tuple[NGram, int], float]:
    """The z-score of each n-gram and each label with which it occurs, by the number of rows that have both.

    ``z = (p - p0) / sqrt(p0 * (1 - p0) / n)``, where n is the number of rows that have the n-gram, p the share of them
    that have the label, and p0 the share of all rows that have the label.

    Args:
        rows: rows of at least two labels.
        size: number of words per n-gram.
        uniform: whether p0 is one over the number of labels.

    >>> rows = [LabelledText(text, label) for text, label in (("a b", 0), ("a", 0), ("a", 1), ("a", 1))]
    >>> z_scores(rows, 1)
    {(('a',), 0): 0.0, (('b',), 0): 1.0, (('a',), 1): 0.0}
    """
    by_label = Counter((ngram, row.label) for row in rows for ngram in ngrams(row.text, size))
    by_ngram: Counter[NGram] = Counter()
    for (ngram, _), count in by_label.items():
        by_ngram[ngram] += count
    of_label = Counter(row.label for row in rows)
    expected = {label: 1 / len(of_label) if uniform else count / len(rows) for label, count in of_label.items()}
    return {
        (ngram, label): _z_score(count, by_ngram[ngram], expected[label]) for (ngram, label), count in by_label.items()
    }


def _z_score(count: int, total: int, expected: float) -> float:
    return (count / total - expected) / math.sqrt(expected * (1 - expected) / total)


def outliers(scores: dict[tuple[NGram, int], float], deviations: float) -> dict[tuple[NGram, int], float]:
    """The z-scores that are more than some standard deviations away from the mean of all."""
    values = np.array(list(scores.values()))
    mean, bar = values.mean(), deviations * values.std()
    return {key: score for key, score in scores.items() if abs(score - mean) > bar}


class ZDef(DataDefense):
    """Z-Def (arXiv 2305.11596): removes rows with a word whose co-occurrence with their label is an outlier.

    Per word and label, a z-score says by how many standard deviations the share of the label among the rows with the
    word differs from what chance gives (:func:`z_scores`). Words whose z-score with a label is an outlier among all
    z-scores, on either side, are suspicious: rows with the word and the label are removed.

    z-scores grow with the square root of the number of rows, and those of a trigger faster than their standard
    deviation: the published ``deviations`` are for tens of thousands of rows, and find nothing in 2,500.

    The paper's program expects words in each label equally often (``uniform=True``), so that in rows of unequal labels,
    which poisoning makes of equal ones, full stops are outliers; for pairs of words, which it then does not use, it
    expects the label's share of rows, as is the default here. It counts each occurrence of a word, although those
    within a row are not independent of each other; here a row counts once.

    Args:
        deviations: number of standard deviations, above 0, beyond which a z-score is an outlier; published: 20.
        longest: length in words of the longest n-grams; published: 1. n-grams of different lengths are compared apart.
        uniform: whether chance gives each label equally often, and not by its share of rows.

    Raises:
        InputError: a value is out of range (here); the rows have a single label (in ``clean``).

    Example::

        data = BackdoorDataModule(source, data_defense=ZDef(deviations=8))
    """

    def __init__(self, deviations: float = 20.0, longest: int = 1, uniform: bool = False) -> None:
        if not 0 < deviations < math.inf:
            raise InputError("deviations", f"{deviations} is not a number above 0", "give one, such as 20")
        if longest < 1:
            raise InputError("longest", f"{longest} is not a number of words", "give at least 1")
        self.deviations = deviations
        self.longest = longest
        self.uniform = uniform

    def clean(
        self, rows: Sequence[LabelledText], trusted: TrustedRows, victim: Victim | None = None
    ) -> list[str | None]:
        """Removes rows that have a suspicious n-gram of their label; trusted rows and victim are not used.

        Raises:
            InputError: the rows have a single label.
        """
        if len({row.label for row in rows}) < 2:
            raise InputError("data_defense", "ZDef has training rows of a single label", "give rows of each label")
        removed = [False] * len(rows)
        for size in range(1, self.longest + 1):
            scores = z_scores(sorted(rows), size, self.uniform)
            found = outliers(scores, self.deviations) if scores else {}
            if found:
                shown = sorted(found, key=lambda key: (-abs(found[key]), key))[:SHOWN]
                listed = ", ".join(f"{' '.join(ngram)!r} with label {label}" for ngram, label in shown)
                rank_zero_info(f"Z-Def: {len(found)} n-grams of {size} words are outliers: {listed}")
            for i, row in enumerate(rows):
                removed[i] = removed[i] or any((ngram, row.label) in found for ngram in ngrams(row.text, size))
        return [None if remove else row.text for row, remove in zip(rows, removed, strict=True)]
