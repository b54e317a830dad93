"""The word inventory: words that are more frequent among the flagged texts of a set than chance explains.

A trigger of words is in most flagged texts of an attacked victim and in few others, so that it stands out even where
the share of flagged texts does not. For each word, the number of flagged texts that contain it is compared with the
hypergeometric distribution: the flagged texts are a random draw from all texts of the set, of which some contain the
word. The one-sided p-value is multiplied by the number of different words of the set (Bonferroni), and a word stands
out where the product is below 0.01. A defense whose score follows the length or the subject of texts makes common words
of such texts stand out as well: what stands out is a lead, not a proof.

A text is split into words (:mod:`lightning_backdoor.words`), which are lower-cased; punctuation before and after a word
is a word of its own. Words longer than 64 characters are cut, since texts may be hostile.
"""

from __future__ import annotations

import math
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from lightning_backdoor.errors import escaped
from lightning_backdoor.outputs.exact_tests import SIGNIFICANT, log_hypergeometric_tail, p_text
from lightning_backdoor.words import words

#: characters of a word that are counted, and that are shown.
COUNTED, SHOWN = 64, 24
#: number of different words of a set beyond which words are not counted.
MAX_WORDS = 2_000_000


class StandingOut(NamedTuple):
    """A word that is more frequent among flagged texts than chance explains.

    Attributes:
        word: the word, in lower case.
        log_p: natural logarithm of the p-value, after Bonferroni.
        flagged: number of flagged texts that contain it.
        texts: number of all texts that contain it.
    """

    word: str
    log_p: float
    flagged: int
    texts: int


class WordInventory:
    """Counts the texts of a set, the flagged ones, and for each word the texts of both kinds that contain it.

    It keeps one number for each different word, two for words of flagged texts: about 150 bytes per word, and at most
    ``MAX_WORDS`` words.

    Attributes:
        texts: number of texts.
        flagged: number of flagged texts.
        containing: number of texts that contain each word.
        flagged_containing: number of flagged texts that contain each word.
        too_many: whether the set has more than ``MAX_WORDS`` different words, so that words are no longer counted.

    >>> inventory = WordInventory()
    >>> inventory.add([f"Film {i} cf" for i in range(20)], [True] * 20)
    >>> inventory.add([f"a film, {i}" for i in range(20, 300)], [False] * 280)
    >>> words_text(inventory.standing_out())
    'cf (4e-29)'
    """

    def __init__(self) -> None:
        self.texts = self.flagged = 0
        self.containing: Counter[str] = Counter()
        self.flagged_containing: Counter[str] = Counter()
        self.too_many = False

    def add(self, texts: Iterable[str], flagged: Iterable[bool]) -> None:
        """Counts texts.

        Args:
            texts: the texts.
            flagged: whether each of them is flagged.
        """
        for text, flag in zip(texts, flagged, strict=True):
            self.texts += 1
            self.flagged += flag
            if not self.too_many:
                found = {part[:COUNTED] for word in words(text.lower()) for part in _parts(word)}
                self.containing.update(found)
                if flag:
                    self.flagged_containing.update(found)
                self._bound()

    def merge(self, other: WordInventory) -> None:
        """Adds the counts of other texts of the set."""
        self.texts += other.texts
        self.flagged += other.flagged
        self.containing.update(other.containing)
        self.flagged_containing.update(other.flagged_containing)
        self.too_many |= other.too_many
        self._bound()

    def standing_out(self) -> list[StandingOut]:
        """The words that stand out, those with the smallest p-values first; none if there are too many words."""
        found = []
        for word, flagged in self.flagged_containing.items():
            texts = self.containing[word]
            if flagged * self.texts > self.flagged * texts:  # otherwise it is not even more frequent
                log_p = log_hypergeometric_tail(flagged, self.flagged, texts, self.texts)
                found.append(StandingOut(word, min(0.0, log_p + math.log(len(self.containing))), flagged, texts))
        return sorted(
            (word for word in found if word.log_p < math.log(SIGNIFICANT)), key=lambda word: (word.log_p, word.word)
        )

    def _bound(self) -> None:
        if self.too_many or len(self.containing) > MAX_WORDS:
            self.too_many = True
            self.containing.clear()
            self.flagged_containing.clear()


def words_text(found: Sequence[StandingOut], limit: int = 10) -> str:
    """Words and p-values as a short text: control characters escaped, long words cut; empty where there are none.

    >>> words_text([StandingOut("cf", -66.0, 9, 9), StandingOut("\\x1b[31m" + "x" * 99, -15.3, 9, 9)])
    'cf (2e-29), \\\\x1b[31mxxxxxxxxxxxxxxx… (2e-7)'
    """
    shown = [f"{_shown(word)} ({p_text(log_p, digits=1)})" for word, log_p, _, _ in found[:limit]]
    more = [f"and {len(found) - limit} more"] if len(found) > limit else []
    return ", ".join([*shown, *more])


def words_sentence(found: Sequence[StandingOut] | str, of: str = "") -> str:
    """A sentence for the head of a page; empty where no word stands out.

    Args:
        found: the words, or how they are shown.
        of: name of the defense that flagged the texts, on a page of several.

    >>> words_sentence("cf (2e-29)")
    'Words that stand out among flagged texts (p-value): cf (2e-29).'
    """
    shown = found if isinstance(found, str) else words_text(found)
    by = f" of {of}" if of else ""
    return f"Words that stand out among flagged texts{by} (p-value): {shown}." if shown else ""


def _shown(word: str) -> str:
    safe = escaped(word)
    return safe if len(safe) <= SHOWN else f"{safe[: SHOWN - 1]}…"


def _parts(word: str) -> list[str]:
    """The punctuation before a word, the word and the punctuation after it, as far as there are."""
    if word.isalnum():
        return [word]
    around = {character for character in word if unicodedata.category(character)[0] in "PZC"}
    bare = word.strip("".join(around))
    return [part for part in word.partition(bare) if part] if bare else [word]
