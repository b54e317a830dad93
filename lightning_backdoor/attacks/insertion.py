"""Inserting words between the words of a text, with the spans of the inserted words.

Several attacks use these functions: whoever changes what they return must increase ``result_format`` of every attack
that calls them. Where words begin is defined in :mod:`lightning_backdoor.words`, which has its own version.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from itertools import permutations
from typing import Literal, get_args

from lightning_backdoor.attacks.poisoned import Poisoned
from lightning_backdoor.errors import InputError
from lightning_backdoor.words import space_between, word_spans

#: where a word is inserted; ``random`` draws a word boundary.
InsertionPlace = Literal["start", "end", "random"]


def check_place(place: str) -> None:
    """Checks that a string is an ``InsertionPlace``.

    Raises:
        InputError: the string is not ``start``, ``end`` or ``random``.
    """
    if place not in get_args(InsertionPlace):
        raise InputError("place", f"{place!r} is unknown", "give start, end or random")


def check_list(strings: Iterable[str] | None, field: str) -> None:
    """Checks that several strings are not given as one, whose letters would be taken for them.

    Args:
        strings: the strings; None for the default.
        field: the argument that gives them.

    Raises:
        InputError: there is one string in place of a list.
    """
    if isinstance(strings, str):
        raise InputError(field, f"{strings[:100]!r} is one string, not a list", f"give [{strings[:100]!r}]")


def check_distinct(triggers: Sequence[str]) -> None:
    """Checks that no trigger contains another one, whatever their case, so that a text has the one that it was given.

    Raises:
        InputError: a trigger is empty, equals another one, or is among its words.
    """
    words = [[trigger[start:end].casefold() for start, end in word_spans(trigger)] for trigger in triggers]
    if not all(words):
        raise InputError("triggers", f"{[*triggers]} holds an empty word", "give at least one word")
    for (i, part), (j, whole) in permutations(enumerate(words), 2):
        if any(whole[start : start + len(part)] == part for start in range(len(whole))):
            raise InputError("triggers", f"{triggers[i]!r} is a part of {triggers[j]!r}", "give triggers that differ")


def insertion_points(text: str, place: InsertionPlace) -> list[int]:
    """The word boundaries of a text at which ``place`` allows a word to be inserted.

    >>> insertion_points("a fine film", "end"), insertion_points("a fine film", "random")
    ([11], [0, 2, 7, 11])
    """
    boundaries = word_boundaries(text)
    return {"start": boundaries[:1], "end": boundaries[-1:], "random": boundaries}[place]


def word_boundaries(text: str) -> list[int]:
    """Indices of the characters before which a word may be inserted: the start of each word and the end of the last.

    In scripts without spaces the words are those of :mod:`lightning_backdoor.words`.

    >>> word_boundaries("a fine film"), word_boundaries("电影，喜欢看")
    ([0, 2, 7, 11], [0, 3, 5, 6])
    """
    return [start for start, _ in word_spans(text)] + [len(text.rstrip())]


def insert_words(text: str, words: Sequence[str], place: InsertionPlace, rng: random.Random) -> Poisoned:
    """Inserts words at places drawn for each; those of one place stay in their order.

    >>> insert_words("a fine film", ["cf", "mn"], "end", random.Random(0)).text
    'a fine film cf mn'
    """
    points = insertion_points(text, place)
    return insert_at(text, sorted(((rng.choice(points), word) for word in words), key=lambda item: item[0]))


def insert_at(text: str, insertions: list[tuple[int, str]]) -> Poisoned:
    """Inserts words at word boundaries given in ascending order, each set off by a space; the spans cover the words.

    In scripts without spaces, a word of such a script has no space beside it, any other word has one on both sides. The
    rest of the text is unchanged.

    >>> insert_at("so good", [(0, "cf"), (7, "mn")])
    Poisoned(text='cf so good mn', spans=[(0, 2), (11, 13)])
    >>> insert_at("电影很好看", [(2, "cf")])
    Poisoned(text='电影 cf 很好看', spans=[(3, 5)])
    >>> insert_at("电影很好看", [(2, "真的")])
    Poisoned(text='电影真的很好看', spans=[(2, 4)])
    """
    parts: list[str] = []
    spans = []
    copied = length = 0  # characters of the text copied so far, and characters written
    last = ""  # the last character written
    end = len(text.rstrip())
    for boundary, word in insertions:
        parts.append(text[copied:boundary])
        length += boundary - copied
        last = parts[-1][-1:] or last
        copied = boundary
        before = space_between(last, word) if last and not (last.isspace() and boundary < end) else ""
        after = space_between(word, text[boundary]) if boundary < end else ""
        parts.append(before + word + after)
        spans.append((length + len(before), length + len(before) + len(word)))
        length += len(parts[-1])
        last = parts[-1][-1]
    return Poisoned("".join(parts) + text[copied:], spans)
