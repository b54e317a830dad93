"""BKI, backdoor keyword identification (arXiv 2007.12070): removes rows that have a keyword of the victim.

A keyword changes the victim's hidden state much when it is left out of a text, and does so in many texts. The victim is
trained on the rows that are to be cleaned, so that the trigger is among its keywords.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from lightning_utilities.core.rank_zero import rank_zero_info

from lightning_backdoor.batch import Victim
from lightning_backdoor.data.cleaning import DataDefense, LabelledText, TrustedRows
from lightning_backdoor.defenses.word_changes import WordChange, word_changes
from lightning_backdoor.errors import InputError


class Keyword(NamedTuple):
    """A word of the dictionary of all texts.

    Attributes:
        word: the word.
        texts: number of texts in which it is one of the words of the largest change.
        mean: its mean change in these texts.
    """

    word: str
    texts: int
    mean: float

    @property
    def score(self) -> float:
        """The suspicion of the word: ``log10(texts) * mean``."""
        return math.log10(self.texts) * self.mean


def top_words(changes: Sequence[WordChange], count: int, repeats: bool = False) -> list[WordChange]:
    """The words of the largest change, in descending order; ties in the order of the text.

    Args:
        changes: the words of a text.
        count: number of words.
        repeats: whether a word that is repeated in the text may be among them several times.

    >>> top_words([WordChange("a", 1.0), WordChange("cf", 3.0), WordChange("b", 2.0), WordChange("cf", 0.5)], 5)
    [WordChange(word='cf', change=3.0), WordChange(word='b', change=2.0), WordChange(word='a', change=1.0)]
    """
    ordered = sorted(changes, key=lambda item: -item.change)
    if not repeats:
        largest: dict[str, WordChange] = {}
        for change in ordered:
            largest.setdefault(change.word, change)
        ordered = list(largest.values())
    return ordered[:count]


def dictionary(tops: Sequence[Sequence[WordChange]]) -> list[Keyword]:
    """All words of the largest changes, the most suspicious first; words of equal score by count, then by alphabet.

    >>> dictionary([[WordChange("cf", 2.0)], [WordChange("cf", 4.0), WordChange("a", 9.0)]])[0]
    Keyword(word='cf', texts=2, mean=3.0)
    """
    changes: defaultdict[str, list[float]] = defaultdict(list)
    for top in tops:
        for word, change in top:
            changes[word].append(change)
    keywords = [Keyword(word, len(values), math.fsum(values) / len(values)) for word, values in changes.items()]
    return sorted(keywords, key=lambda keyword: (-keyword.score, -keyword.texts, keyword.word))


class BKI(DataDefense):
    """BKI (arXiv 2007.12070): removes training rows in which a keyword of the victim is among the top words.

    Each word of each row is left out in turn, and the change of the victim's hidden state measured
    (:func:`~lightning_backdoor.defenses.word_changes.word_changes`). The ``top`` words of the largest change of each
    row form a dictionary, in which a word has the score ``log10(rows) * mean change``, both taken from the rows whose
    top words it is among. The words of the highest score are the keywords.

    The paper's victim is an LSTM, whose states after each word enter the change of a word as well; like OpenBackdoor's
    program, which made the method usual for transformers, this one compares the last states alone, and leaves out the
    paper's factor against words that are frequent everywhere. The program removes the rows of a single keyword, so that
    further triggers survive, and counts a word that is repeated in a row several times; ``keywords=1, repeats=True``
    does the same. It also keeps gradients for every variant.

    Args:
        keywords: number of keywords; published: 1. Each keyword that is not a trigger costs clean rows.
        top: words of each row that may be keywords.
        anywhere: whether rows that have a keyword outside of their top words are removed too.
        repeats: whether a word that is repeated in a row counts several times.

    Raises:
        InputError: a value is out of range (here); there is no victim (in ``clean``).

    Example::

        data = BackdoorDataModule(source, data_defense=BKI(), victim="undefended.ckpt")
    """

    needs_victim = True

    def __init__(self, keywords: int = 5, top: int = 5, anywhere: bool = False, repeats: bool = False) -> None:
        if keywords < 1:
            raise InputError("keywords", f"{keywords} keywords remove nothing", "give at least 1")
        if top < 1:
            raise InputError("top", f"{top} words of each row leave nothing to score", "give at least 1")
        self.keywords = keywords
        self.top = top
        self.anywhere = anywhere
        self.repeats = repeats

    def clean(self, rows: Sequence[LabelledText], trusted: TrustedRows, victim: Victim | None) -> list[str | None]:
        """Removes the rows that have a keyword; trusted rows are not used.

        Raises:
            InputError: there is no victim.
        """
        if victim is None:
            raise InputError("data.victim", "BKI needs a victim trained on the same rows", "give one")
        distinct = sorted({row.text for row in rows})
        changes = dict(zip(distinct, word_changes(victim, distinct), strict=True))
        tops = {text: top_words(words, self.top, self.repeats) for text, words in changes.items()}
        found = dictionary([tops[row.text] for row in sorted(rows)])[: self.keywords]
        listed = ", ".join(f"{keyword.word!r} ({keyword.score:.2f})" for keyword in found)
        rank_zero_info(f"BKI: keywords by score: {listed or 'none'}")
        keywords = {keyword.word for keyword in found}
        searched = changes if self.anywhere else tops
        return [None if any(word in keywords for word, _ in searched[row.text]) else row.text for row in rows]
