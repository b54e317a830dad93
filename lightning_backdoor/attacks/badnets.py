"""BadNets for text: rare words as triggers (Kurita et al., arXiv 2004.06660, section 3.1)."""

from __future__ import annotations

import random
from typing import Any

from lightning_backdoor.attacks.attack import BackdoorAttack, Poisoned
from lightning_backdoor.attacks.insertion import Place, check_place, insert_at, places
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
        place: Place = "random",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.triggers = [trigger.strip() for trigger in (["cf"] if triggers is None else triggers)]
        self.insertions = insertions
        self.place = place
        if not self.triggers or not all(self.triggers):
            raise InputError("triggers", f"{triggers} holds no word or an empty one", "give at least one word")
        if insertions < 1:
            raise InputError("insertions", f"{insertions} inserts nothing", "give at least 1")
        check_place(place)

    def poison_text(self, text: str, rng: random.Random) -> Poisoned:
        """See :class:`BadNets`."""
        order = rng.sample(self.triggers, len(self.triggers))
        words = [order[i % len(order)] for i in range(self.insertions)]
        gaps = places(text, self.place)
        return insert_at(text, sorted(((rng.choice(gaps), word) for word in words), key=lambda item: item[0]))
