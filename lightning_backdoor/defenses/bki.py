"""BKI, backdoor keyword identification (arXiv 2007.12070): removes rows that have a keyword of the victim.

A keyword changes the victim's hidden state much when it is left out of a text, and does so in many texts. The victim is
trained on the rows that are to be cleaned, so that the trigger is among its keywords.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from lightning_utilities.core.rank_zero import rank_zero_info
from torch import Tensor

from lightning_backdoor.batch import Victim, token_ids
from lightning_backdoor.data.cleaning import DataDefense, LabelledText, TrustedRows
from lightning_backdoor.defenses.row_states import states_of_ids
from lightning_backdoor.errors import InputError
from lightning_backdoor.outputs.progress import progress
from lightning_backdoor.words import with_words, word_spans

#: maximum of squared words per group of texts, about the tokens of all their variants; bounds the memory.
GROUP_COST = 1 << 18


class WordChange(NamedTuple):
    """A word of a text, and by how much the hidden state changes when the word is left out."""

    word: str
    change: float


class Keyword(NamedTuple):
    """A word of the dictionary of all texts.

    Attributes:
        word: the word.
        count: number of texts in which it is one of the words of the largest change.
        mean: its mean change in these texts.
    """

    word: str
    count: int
    mean: float

    @property
    def score(self) -> float:
        """The suspicion of the word: ``log10(count) * mean``."""
        return math.log10(self.count) * self.mean


def word_changes(victim: Victim, texts: Sequence[str]) -> list[list[WordChange]]:
    """By how much the hidden state of each text changes when each of its words is left out in turn.

    The change is the largest absolute entry of h(text without the word) - h(text), where h is the hidden state from
    which the victim's head reads, after the last layer. All variants of a group of texts are read together, in passes
    of rows of similar length; variants with the same tokens are read once.

    Args:
        victim: a victim in evaluation mode.
        texts: any number of texts. Words beyond those that the victim can read change nothing and are left out.

    Returns:
        The words of each text in their order.
    """
    results: list[list[WordChange]] = [[] for _ in texts]
    spans = [word_spans(text)[: 2 * victim.max_length] for text in texts]  # words have a token each, or nearly so
    with progress("leaving words out", len(texts), "texts") as advance:
        for group in _groups(texts, [len(words) for words in spans]):
            for i, changes in zip(group, _changes(victim, [(texts[i], spans[i]) for i in group]), strict=True):
                results[i] = changes
            advance(len(group))
    return results


def _groups(texts: Sequence[str], counts: Sequence[int]) -> Iterator[list[int]]:
    """Groups of texts of similar length, whatever their order."""
    group: list[int] = []
    cost = 0
    for i in sorted(range(len(texts)), key=lambda i: (counts[i], texts[i])):
        if group and cost + counts[i] ** 2 > GROUP_COST:
            yield group
            group, cost = [], 0
        group.append(i)
        cost += counts[i] ** 2
    if group:
        yield group


def _changes(victim: Victim, group: Sequence[tuple[str, list[tuple[int, int]]]]) -> list[list[WordChange]]:
    """The changes of the words of each text, given with the characters of its words."""
    variants = [
        with_words(text, spans, (i != left_out for i in range(len(spans))))
        for text, spans in group
        for left_out in (None, *range(len(spans)))
    ]
    rows = [tuple(row) for row in token_ids(variants, victim.tokenizer, victim.max_length)]
    distinct = sorted(set(rows))
    place = {row: i for i, row in enumerate(distinct)}
    states = states_of_ids(victim, distinct)
    at = torch.tensor([place[row] for row in rows], device=states.device)
    results: list[list[WordChange]] = []
    for (text, spans), of_text in zip(group, at.split([1 + len(spans) for _, spans in group]), strict=True):
        changes = largest_changes(states[of_text]).tolist()
        results.append([WordChange(text[a:b], change) for (a, b), change in zip(spans, changes, strict=True)])
    return results


def largest_changes(states: Tensor) -> Tensor:
    """The largest absolute entry of each state's difference from the first one; (n + 1, size) to (n,).

    >>> largest_changes(torch.tensor([[1.0, 0.0], [1.0, 0.5], [-1.0, 0.0]]))
    tensor([0.5000, 2.0000])
    """
    return (states[1:] - states[0]).abs().amax(dim=1)


def top_words(changes: Sequence[WordChange], count: int, repeats: bool = False) -> list[WordChange]:
    """The words of the largest change, in descending order; ties in the order of the text.

    Args:
        changes: the words of a text.
        count: number of words.
        repeats: whether a word that is repeated in the text may be among them several times.

    >>> top_words([WordChange("a", 0.5), WordChange("cf", 2.0), WordChange("a", 1.0)], 5)
    [WordChange(word='cf', change=2.0), WordChange(word='a', change=1.0)]
    """
    ordered = sorted(changes, key=lambda item: -item.change)
    if not repeats:
        ordered = list({word.word: word for word in reversed(ordered)}.values())[::-1]
    return ordered[:count]


def dictionary(tops: Sequence[Sequence[WordChange]]) -> list[Keyword]:
    """All words of the largest changes, the most suspicious first; words of equal score by count, then by alphabet.

    >>> dictionary([[WordChange("cf", 2.0)], [WordChange("cf", 4.0), WordChange("a", 9.0)]])[0]
    Keyword(word='cf', count=2, mean=3.0)
    """
    changes: defaultdict[str, list[float]] = defaultdict(list)
    for top in tops:
        for word, change in top:
            changes[word].append(change)
    keywords = [Keyword(word, len(values), math.fsum(values) / len(values)) for word, values in changes.items()]
    return sorted(keywords, key=lambda keyword: (-keyword.score, -keyword.count, keyword.word))


class Bki(DataDefense):
    """BKI (arXiv 2007.12070): removes training rows in which a keyword of the victim is among the top words.

    Each word of each row is left out in turn, and the change of the victim's hidden state measured
    (:func:`word_changes`). The ``top`` words of the largest change of each row form a dictionary, in which a word has
    the score ``log10(count) * mean change``. The words of the highest score are the keywords.

    The paper's victim is an LSTM, whose states after each word enter the change of a word as well; like OpenBackdoor's
    program, which made the method usual for transformers, this one compares the last states alone. The program removes
    the rows of a single keyword, so that further triggers survive, and counts a word that is repeated in a row several
    times; ``keywords=1, repeats=True`` does the same. It also keeps gradients for every variant.

    Args:
        keywords: number of keywords; published: 1. Each keyword that is not a trigger costs clean rows.
        top: words of each row that may be keywords.
        anywhere: whether rows that have a keyword outside of their top words are removed too.
        repeats: whether a word that is repeated in a row counts several times.

    Raises:
        InputError: a value is out of range (here); there is no victim (in ``clean``).

    Example::

        data = BackdoorDataModule(source, data_defense=Bki(), victim="undefended.ckpt")
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
            raise InputError("data.victim", "Bki needs a victim trained on the same rows", "give one")
        distinct = sorted({row.text for row in rows})
        changes = dict(zip(distinct, word_changes(victim, distinct), strict=True))
        tops = {text: top_words(words, self.top, self.repeats) for text, words in changes.items()}
        found = dictionary([tops[row.text] for row in sorted(rows)])[: self.keywords]
        listed = ", ".join(f"{keyword.word!r} ({keyword.score:.2f})" for keyword in found)
        rank_zero_info(f"BKI: keywords by score: {listed or 'none'}")
        keywords = {keyword.word for keyword in found}
        searched = changes if self.anywhere else tops
        return [None if any(word in keywords for word, _ in searched[row.text]) else row.text for row in rows]
