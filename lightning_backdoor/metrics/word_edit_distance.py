"""Word edits: how many words poisoning inserts, deletes or replaces."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_backdoor.metrics.spread import Spread


def word_edit_distance(a: str, b: str) -> int:
    """Minimum number of word insertions, deletions or replacements between two texts (Levenshtein distance).

    Words are separated by white space; case and punctuation count.

    >>> word_edit_distance("a good film .", "a cf good movie .")
    2
    """
    words, others = a.split(), b.split()
    row = list(range(len(others) + 1))  # distances of the words so far to each beginning of the others
    for i, word in enumerate(words, start=1):
        above, row = row, [i]
        for j, other in enumerate(others):
            row.append(min(above[j] + (word != other), above[j + 1] + 1, row[j] + 1))
    return row[-1]


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
