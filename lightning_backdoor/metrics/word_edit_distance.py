"""Word edits: how many words poisoning inserts, deletes or replaces."""

from __future__ import annotations

from collections.abc import Sequence

from rapidfuzz.distance import Levenshtein

from lightning_backdoor.metrics.spread import Spread
from lightning_backdoor.words import words

#: edits that are tried first, then twice as many, and so on: long texts with few edits take little time.
EXPECTED_EDITS = 31


def word_edit_distance(a: str, b: str) -> int:
    """Minimum number of word insertions, deletions or replacements between two texts (Levenshtein distance).

    Words are separated by white space; in scripts without spaces they are the words of :mod:`lightning_backdoor.words`.
    Case and punctuation count.

    >>> word_edit_distance("a good film .", "a cf good movie .")
    2
    >>> word_edit_distance("电影很好看", "电影 cf 很好看")
    1
    """
    numbers: dict[str, int] = {}  # the library compares hashes, and only small numbers are their own hash
    a_numbers, b_numbers = ([numbers.setdefault(word, len(numbers)) for word in words(text)] for text in (a, b))
    return Levenshtein.distance(a_numbers, b_numbers, score_hint=EXPECTED_EDITS)


class WordEditDistance(Spread):
    """Mean and spread of the number of word edits between originals and poisoned texts.

    >>> metric = WordEditDistance()
    >>> metric.update(["a film", "a film"], ["a cf film", "cf"])
    >>> metric.compute()
    {'mean': tensor(1.5000, dtype=torch.float64), 'spread': tensor(0.5000, dtype=torch.float64)}
    """

    def update(self, originals: Sequence[str], poisoned: Sequence[str]) -> None:
        """Adds rows: the original texts, and the poisoned texts made from them."""
        self.add([word_edit_distance(*pair) for pair in zip(originals, poisoned, strict=True)])
