"""Edits of single words: a text as words that may be substituted, and between which words may be inserted.

Whoever changes what these functions return must increase ``result_format`` of every attack that calls them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from lightning_backdoor.attacks.poisoned import Poisoned
from lightning_backdoor.attacks.substitution import SubstituteSource, in_case_of
from lightning_backdoor.language.masked_words import Place, ProbableWord
from lightning_backdoor.language.paraphrase.spec import TREEBANK_WORD


class Edit(NamedTuple):
    """A word that may be written into a text.

    Attributes:
        inserts: whether it is inserted after a word, rather than written in its place.
        position: index of that word.
        word: the new word as it is written.
        probability: how well it fits its place, from 0 to 1.
    """

    inserts: bool
    position: int
    word: str
    probability: float


@dataclass(frozen=True)
class EditedText:
    """A text in words, punctuation marks included, as it is after some edits.

    Attributes:
        gaps: the characters before each word, and after the last.
        words: the words.
        edited: whether each word was written by an edit.
        budget: largest number of substitutions, and of insertions.
        substitutions: number of substitutions so far.
        insertions: number of insertions so far.
    """

    gaps: tuple[str, ...]
    words: tuple[str, ...]
    edited: tuple[bool, ...]
    budget: int
    substitutions: int = 0
    insertions: int = 0

    @classmethod
    def of(cls, text: str, share: float) -> EditedText:
        """A text before its first edit, with a budget of a share of its words, rounded down.

        >>> EditedText.of("It isn't  bad.", 0.5).words
        ('It', 'is', "n't", 'bad', '.')
        """
        gaps, words, end = [], [], 0
        for match in TREEBANK_WORD.finditer(text):
            gaps.append(text[end : match.start()])
            words.append(match.group())
            end = match.end()
        budget = int(share * len(words) + 1e-9)  # 0.29 * 100 is 28.999…
        return cls((*gaps, text[end:]), tuple(words), (False,) * len(words), budget)

    @property
    def text(self) -> str:
        """The text."""
        return "".join(map("".join, zip(self.gaps, self.words, strict=False))) + self.gaps[-1]

    @property
    def poisoned(self) -> Poisoned:
        """The text, with the spans of the words that edits have written."""
        spans, end = [], 0
        for gap, word, edited in zip(self.gaps, self.words, self.edited, strict=False):
            start, end = end + len(gap), end + len(gap) + len(word)
            if edited:
                spans.append((start, end))
        return Poisoned(self.text, spans)

    def forms(self) -> set[str]:
        """The different words of the text, in lower case."""
        return {word.lower() for word in self.words}

    def after(self, edit: Edit) -> EditedText:
        """The text after one more edit.

        >>> text = EditedText.of("a film.", 1.0).after(Edit(True, 0, "short", 0.1)).after(Edit(False, 2, "movie", 0.2))
        >>> text.poisoned
        Poisoned(text='a short movie.', spans=[(2, 7), (8, 13)])
        >>> EditedText.of("The film's great.", 1.0).after(Edit(False, 2, "is", 0.5)).text
        'The film is great.'
        """
        at = edit.position + edit.inserts
        around = (" ", self.gaps[at]) if edit.inserts else self._gaps_around(at)
        kept = at if edit.inserts else at + 1  # the first word after the new one
        return replace(
            self,
            gaps=(*self.gaps[:at], *around, *self.gaps[kept + 1 :]),
            words=(*self.words[:at], edit.word, *self.words[kept:]),
            edited=(*self.edited[:at], True, *self.edited[kept:]),
            substitutions=self.substitutions + (not edit.inserts),
            insertions=self.insertions + edit.inserts,
        )

    def places(self) -> Iterator[tuple[bool, int, Place]]:
        """Where a word may be written within the budget: whether inserted, index of the word, and the text around it.

        Words are inserted only where a blank separates two words, never before the first or after the last.
        """
        pieces = [piece for pair in zip(self.gaps, (*self.words, ""), strict=True) for piece in pair]
        for i, word in enumerate(self.words):
            before, after = "".join(pieces[: 2 * i]), "".join(pieces[2 * i + 3 :])
            if self.substitutions < self.budget:
                left, right = self._gaps_around(i)
                yield False, i, Place(f"{before}{left}", f"{right}{after}")
            if self.insertions < self.budget and i + 1 < len(self.words) and any(map(str.isspace, self.gaps[i + 1])):
                yield True, i, Place(f"{before}{self.gaps[i]}{word} ", f"{self.gaps[i + 1]}{after}")

    def _gaps_around(self, i: int) -> tuple[str, str]:
        """The characters before and after a word that is written in place of word ``i``.

        In place of a mark or an ending, such as the 's of film's, they get the blank that keeps two words apart.
        """
        before, word, after = self.gaps[i], self.words[i], self.gaps[i + 1]
        if i > 0 and not before and (self.words[i - 1][-1].isalnum() or not word[0].isalnum()):
            before = " "
        if i + 1 < len(self.words) and not after and self.words[i + 1][0].isalnum() and not word[-1].isalnum():
            after = " "
        return before, after


def edits_at(places: Iterable[tuple[bool, int, Place]], words: Iterable[Sequence[ProbableWord]]) -> list[Edit]:
    """The edits that write each of the words found for each place."""
    return [Edit(inserts, i, *word) for (inserts, i, _), found in zip(places, words, strict=True) for word in found]


def substitutions(text: EditedText, source: SubstituteSource) -> list[Edit]:
    """The edits that write a substitute from a source in place of a word; a source ranks, its k-th word counts 1/k."""
    if text.substitutions >= text.budget:
        return []
    candidates = source.candidates([word.lower() for word in text.words])
    return [
        Edit(False, i, in_case_of(word, text.words[i]), 1 / rank)
        for i, found in enumerate(candidates)
        for rank, word in enumerate(found, start=1)
    ]


def by_word(text: EditedText, edits: Iterable[Edit]) -> dict[str, list[Edit]]:
    """The edits that are within the budget and bring a new word, by this word in lower case, the preferred one first.

    Substitutions are preferred to insertions, and then what is more probable.

    >>> text = EditedText.of("a good film", 0.4)
    >>> by_word(text, [Edit(True, 0, "very", 0.9), Edit(False, 1, "Very", 0.1), Edit(False, 2, "good", 0.5)])
    {'very': [Edit(inserts=False, position=1, word='Very', probability=0.1), \
Edit(inserts=True, position=0, word='very', probability=0.9)]}
    """
    has = text.forms()
    left = {True: text.budget - text.insertions, False: text.budget - text.substitutions}
    found: dict[str, list[Edit]] = {}
    for edit in sorted(edits, key=lambda edit: (edit.inserts, -edit.probability, edit.position)):
        if left[edit.inserts] > 0 and edit.word.lower() not in has:
            found.setdefault(edit.word.lower(), []).append(edit)
    return found
