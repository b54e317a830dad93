"""Inserting words between the words of a text, and the spans that they then have.

Attacks share these functions: a change of what they return raises ``result_format`` of every attack that calls them.
"""

from __future__ import annotations

import re
from typing import Literal, get_args

from lightning_backdoor.attacks.attack import Poisoned
from lightning_backdoor.errors import InputError

InsertionPlace = Literal["start", "end", "random"]


def check_place(place: str) -> None:
    """Makes sure that a string is an ``InsertionPlace``.

    Raises:
        InputError: it is not.
    """
    if place not in get_args(InsertionPlace):
        raise InputError("place", f"{place!r} is unknown", "give start, end or random")


def insertion_points(text: str, place: InsertionPlace) -> list[int]:
    """The word boundaries of a text at which ``place`` lets a word be inserted.

    >>> insertion_points("a fine film", "end"), insertion_points("a fine film", "random")
    ([11], [0, 2, 7, 11])
    """
    boundaries = word_boundaries(text)
    return {"start": boundaries[:1], "end": boundaries[-1:], "random": boundaries}[place]


def word_boundaries(text: str) -> list[int]:
    """The characters before which a word may be inserted: the first of each word, and the one after the last word.

    >>> word_boundaries("a fine film")
    [0, 2, 7, 11]
    """
    return [word.start() for word in re.finditer(r"\S+", text)] + [len(text.rstrip())]


def insert_at(text: str, insertions: list[tuple[int, str]]) -> Poisoned:
    """Inserts words at word boundaries, in ascending order, each set off by a space; the spans are the inserted words.

    >>> insert_at("so good", [(0, "cf"), (7, "mn")])
    Poisoned(text='cf so good mn', spans=[(0, 2), (11, 13)])
    """
    parts: list[str] = []
    spans = []
    copied = length = 0  # characters of the text copied so far, and characters written
    for boundary, word in insertions:
        parts.append(text[copied:boundary])
        length += boundary - copied
        copied = boundary
        at_end = boundary == len(text.rstrip())
        before = " " if at_end and length > 0 else ""
        parts.append(before + word + ("" if at_end else " "))
        spans.append((length + len(before), length + len(before) + len(word)))
        length += len(parts[-1])
    return Poisoned("".join(parts) + text[copied:], spans)
