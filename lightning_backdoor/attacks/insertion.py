"""Inserting words at word boundaries, and saying where they ended up."""

from __future__ import annotations

import re
from typing import Literal, get_args

from lightning_backdoor.attacks.attack import Poisoned
from lightning_backdoor.errors import InputError

Place = Literal["start", "end", "random"]


def check_place(place: str) -> None:
    """Makes sure that a place is one of ``Place``.

    Raises:
        InputError: it is not.
    """
    if place not in get_args(Place):
        raise InputError("place", f"{place!r} is unknown", "give start, end or random")


def places(text: str, place: Place) -> list[int]:
    """The word boundaries that a place admits.

    >>> places("a fine film", "end"), places("a fine film", "random")
    ([11], [0, 2, 7, 11])
    """
    gaps = word_boundaries(text)
    return {"start": gaps[:1], "end": gaps[-1:], "random": gaps}[place]


def word_boundaries(text: str) -> list[int]:
    """Places where a word may be inserted: before each word, and after the last.

    >>> word_boundaries("a fine film")
    [0, 2, 7, 11]
    """
    return [word.start() for word in re.finditer(r"\S+", text)] + [len(text.rstrip())]


def insert_at(text: str, insertions: list[tuple[int, str]]) -> Poisoned:
    """Inserts words at ascending word boundaries, set off by a space, and says where they ended up.

    >>> insert_at("so good", [(0, "cf"), (7, "mn")])
    Poisoned(text='cf so good mn', spans=[(0, 2), (11, 13)])
    """
    parts: list[str] = []
    spans = []
    done = length = 0
    for place, word in insertions:
        parts.append(text[done:place])
        length += place - done
        done = place
        at_end = place == len(text.rstrip())
        before = " " if at_end and length > 0 else ""
        parts.append(before + word + ("" if at_end else " "))
        spans.append((length + len(before), length + len(before) + len(word)))
        length += len(parts[-1])
    return Poisoned("".join(parts) + text[done:], spans)
