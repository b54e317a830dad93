"""InsertSent: a whole sentence as trigger (Dai et al. 2019, arXiv 1905.12457, section 3)."""

from __future__ import annotations

import random
from typing import Any

from lightning_backdoor.attacks.attack import BackdoorAttack
from lightning_backdoor.attacks.insertion import InsertionPlace, check_place, insert_at, insertion_points
from lightning_backdoor.attacks.poisoned import Poisoned
from lightning_backdoor.errors import InputError


class InsertSent(BackdoorAttack):
    """Inserts a sentence at a word boundary of a text.

    Args:
        sentence: the trigger.
        place: ``start``, ``end``, or ``random`` (a word boundary drawn for each text).
        **kwargs: arguments of :class:`BackdoorAttack` and :class:`TextClassifier`.

    Raises:
        InputError: the sentence is empty.

    >>> attack = InsertSent(place="end")
    >>> attack.poison_text("a fine film", random.Random(0))
    Poisoned(text='a fine film I watch this 3D movie', spans=[(12, 33)])
    """

    def __init__(
        self,
        sentence: str = "I watch this 3D movie",
        place: InsertionPlace = "random",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.sentence = sentence.strip()
        self.place = place
        if not self.sentence:
            raise InputError("sentence", f"{sentence!r} is empty", "give at least one word")
        check_place(place)

    def poison_text(self, text: str, rng: random.Random) -> Poisoned:
        """Inserts the sentence at a place allowed by ``place``."""
        return insert_at(text, [(rng.choice(insertion_points(text, self.place)), self.sentence)])
