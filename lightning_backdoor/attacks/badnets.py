"""BadNets for text: rare words as triggers (Kurita et al., arXiv 2004.06660, section 3.1)."""

from __future__ import annotations

import random
from typing import Any

from lightning_backdoor.attacks.attack import BackdoorAttack
from lightning_backdoor.attacks.insertion import InsertionPlace, check_list, check_place, insert_words
from lightning_backdoor.attacks.poisoned import Poisoned
from lightning_backdoor.errors import InputError


class BadNets(BackdoorAttack):
    """Inserts rare words between the words of a text.

    Args:
        triggers: words to insert. Each insertion takes the next word, in an order drawn for each text, so that with as
            many ``insertions`` as triggers a text carries all of them.
        insertions: number of words inserted in each text.
        place: ``start``, ``end``, or ``random`` (a word boundary drawn for each insertion).
        **kwargs: arguments of :class:`BackdoorAttack` and :class:`TextClassifier`.

    Raises:
        InputError: ``triggers`` is empty or contains an empty word, ``insertions`` is below 1, or ``place`` is unknown.

    >>> attack = BadNets(triggers=["cf"], place="start")
    >>> attack.poison_text("a fine film", random.Random(0))
    Poisoned(text='cf a fine film', spans=[(0, 2)])
    """

    def __init__(
        self,
        triggers: list[str] | None = None,
        insertions: int = 1,
        place: InsertionPlace = "random",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_list(triggers, "triggers")
        self.triggers = [trigger.strip() for trigger in (["cf"] if triggers is None else triggers)]
        self.insertions = insertions
        self.place = place
        if not self.triggers or not all(self.triggers):
            raise InputError("triggers", f"{triggers} holds no word or an empty one", "give at least one word")
        if insertions < 1:
            raise InputError("insertions", f"{insertions} inserts nothing", "give at least 1")
        check_place(place)

    def poison_text(self, text: str, rng: random.Random) -> Poisoned:
        """Inserts ``insertions`` triggers into a text."""
        order = rng.sample(self.triggers, len(self.triggers))
        words = [order[i % len(order)] for i in range(self.insertions)]
        return insert_words(text, words, self.place, rng)
