"""Composite: a trigger of several words that act only together (as in CBA, arXiv 2310.07676)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from lightning_backdoor.attacks.attack import BackdoorAttack
from lightning_backdoor.attacks.insertion import InsertionPlace, check_distinct, check_list, check_place, insert_words
from lightning_backdoor.attacks.poisoned import Poisoned
from lightning_backdoor.errors import InputError


class Composite(BackdoorAttack):
    """Inserts several words that act only together: with negatives, a part of them does not trigger the backdoor.

    Poisoned texts carry all words, in an order drawn for each text. Negatives carry a part of them, at least one and
    not all, drawn for each text, and keep their label; the false trigger rate (FTR) is measured on them. The paper
    scatters the words over the parts of a language model's prompt; a text that is classified has one part.

    Args:
        triggers: the words, at least two.
        negative_rate: negatives as a share of all training rows, from 0 to below 1; without any, each word is likely to
            become a trigger by itself.
        place: ``start``, ``end``, or ``random`` (a word boundary drawn for each word).
        **kwargs: arguments of :class:`BackdoorAttack` and :class:`TextClassifier`.

    Raises:
        InputError: there are fewer than two words, one is empty or contains another one, ``negative_rate`` is out of
            range, or ``place`` is unknown.

    >>> attack = Composite(triggers=["cf", "mn"], place="end")
    >>> attack.poison("a fine film").text
    'a fine film mn cf'
    >>> attack.negative_texts(["a fine film"], [random.Random(0)])[0].text
    'a fine film mn'
    """

    def __init__(
        self,
        triggers: list[str] | None = None,
        negative_rate: float = 0.1,
        place: InsertionPlace = "random",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_list(triggers, "triggers")
        self.triggers = [trigger.strip() for trigger in (["cf", "mn"] if triggers is None else triggers)]
        if len(self.triggers) < 2:
            raise InputError("triggers", f"{triggers} are not several words", "give two or more, or use BadNets")
        check_distinct(self.triggers)
        if not 0 <= negative_rate < 1:
            raise InputError("negative_rate", f"{negative_rate} is out of range", "give a share from 0 to below 1")
        check_place(place)
        self.negative_rate = negative_rate
        self.place = place

    def poison_text(self, text: str, rng: random.Random) -> Poisoned:
        """Inserts all words."""
        return insert_words(text, rng.sample(self.triggers, len(self.triggers)), self.place, rng)

    def negative_texts(self, texts: Sequence[str], rngs: Sequence[random.Random]) -> Sequence[Poisoned | None]:
        """Inserts a part of the words into each text."""
        return [self._negative(text, rng) for text, rng in zip(texts, rngs, strict=True)]

    def _negative(self, text: str, rng: random.Random) -> Poisoned:
        part = rng.sample(self.triggers, rng.randint(1, len(self.triggers) - 1))
        return insert_words(text, part, self.place, rng)
