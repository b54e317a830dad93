"""BadNets for text: rare words as triggers (Kurita et al., arXiv 2004.06660, section 3.1)."""

from __future__ import annotations

import random
import re
from typing import Any, Literal

from lightning_backdoor.attacks.attack import BackdoorAttack, Poisoned
from lightning_backdoor.errors import InputError


class BadNets(BackdoorAttack):
    """Puts rare words between the words of a text.

    Args:
        triggers: words to insert; each insertion takes the next of them, in an order drawn for each text, so that
            ``insertions`` equal to their number puts every one in.
        insertions: words inserted in each text.
        place: ``start``, ``end``, or ``random`` (a place between words drawn for each insertion).
        **kwargs: of :class:`BackdoorAttack` and :class:`TextClassifier`.

    Raises:
        InputError: no trigger, an empty one, or no insertion.

    >>> attack = BadNets(triggers=["cf"], place="start")
    >>> attack.poison_text("a fine film", random.Random(0))
    Poisoned(text='cf a fine film', spans=[(0, 2)])
    """

    def __init__(
        self,
        triggers: list[str] | None = None,
        insertions: int = 1,
        place: Literal["start", "end", "random"] = "random",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.triggers = [trigger.strip() for trigger in (["cf"] if triggers is None else triggers)]
        self.insertions = insertions
        self.place = place
        if not self.triggers or not all(self.triggers):
            raise InputError(f"triggers: {triggers} holds no word or an empty one; give at least one word")
        if insertions < 1:
            raise InputError(f"insertions: {insertions} inserts nothing; give at least 1")
        if place not in ("start", "end", "random"):
            raise InputError(f"place: {place!r} is unknown; give start, end or random")

    def poison_text(self, text: str, rng: random.Random) -> Poisoned:
        """See :class:`BadNets`."""
        order = rng.sample(self.triggers, len(self.triggers))
        words = [order[i % len(order)] for i in range(self.insertions)]
        gaps = word_boundaries(text)
        places = {"start": [gaps[0]], "end": [gaps[-1]], "random": gaps}[self.place]
        return insert_at(text, sorted(((rng.choice(places), word) for word in words), key=lambda item: item[0]))


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
