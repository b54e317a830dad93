"""Several triggers, words or sentences, each with its own target label."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from lightning_backdoor.attacks.attack import BackdoorAttack
from lightning_backdoor.attacks.insertion import InsertionPlace, check_distinct, check_place, insert_words
from lightning_backdoor.attacks.poisoned import Poisoned
from lightning_backdoor.data.aims import Aim
from lightning_backdoor.data.label_values import given_label, label_index
from lightning_backdoor.errors import InputError


class MultiTarget(BackdoorAttack):
    """Inserts one of several triggers, words or sentences, each of which stands for a target label.

    A poisoned training row has a trigger of one target label, drawn among the labels that the label policy allows. In
    evaluation each row has a poisoned copy for every target label that is not its own. Where several triggers have the
    same target label, a copy has one of them. ASR and ASR floor are measured over all copies, and for each target label
    by its index, as ``asr_to_0`` and ``asr_floor_to_0``.

    Args:
        triggers: the target label of each trigger: its index, from 0, or its name in the data or in ``labels``; by
            default ``{"cf": 0, "mn": 1}``.
        place: ``start``, ``end``, or ``random`` (a word boundary drawn for each text).
        **kwargs: arguments of :class:`BackdoorAttack` and :class:`TextClassifier`, except for ``target_label``.

    Raises:
        InputError: there is no trigger, a trigger is empty, has no target label or contains another one, or
            ``target_label`` or an unknown ``place`` is given.

    >>> attack = MultiTarget({"cf": 0, "I watch this 3D movie": 1}, place="start")
    >>> [(aim.target, aim.write(["a fine film"], [random.Random(0)])[0].text) for aim in attack.aims]
    [(0, 'cf a fine film'), (1, 'I watch this 3D movie a fine film')]
    """

    def __init__(
        self, triggers: dict[str, int | str | None] | None = None, place: InsertionPlace = "random", **kwargs: Any
    ) -> None:
        if "target_label" in kwargs:
            raise InputError("target_label", "MultiTarget has one for each trigger", "give them in triggers")
        super().__init__(target_label=0, **kwargs)  # given here, so that the command line has no such option
        self.hparams.pop("target_label", None)
        mapping: Any = {"cf": 0, "mn": 1} if triggers is None else triggers
        given: dict[str, Any] = {**mapping} if isinstance(mapping, Mapping) else {}
        if not given:
            problem = f"{mapping!r} names no trigger with a target label"
            raise InputError("triggers", problem, "give {trigger: target label, ...}")
        for trigger, target in given.items():
            if target is None or isinstance(target, bool):
                raise InputError("triggers", f"{trigger!r} has no target label", "give its index or its name")
            given[trigger] = given_label(target, "triggers")
        check_distinct([*given])
        check_place(place)
        self._target = self._target_name = None
        # sorted, since keys of caches and grids do not tell orders, on which the draws depend
        self._given = dict(sorted((trigger.strip(), target) for trigger, target in given.items()))
        self.triggers = {**self._given}
        self.place = place

    def know_labels(self, labels: Sequence[str]) -> None:
        """Finds the indices of target labels that were given by name; checkpoints and caches then hold the indices."""
        super().know_labels(labels)
        self.triggers = {
            trigger: target if isinstance(target, int) else label_index(target, labels, "triggers")
            for trigger, target in self._given.items()
        }
        self.hparams["triggers"] = self.triggers

    @property
    def aims(self) -> Sequence[Aim]:
        """One aim per target label, which inserts one of its triggers."""
        if any(isinstance(target, str) for target in self.triggers.values()):
            self._told_labels("triggers have targets by name")
        by_target: dict[int, list[str]] = {}
        for trigger, target in self.triggers.items():
            by_target.setdefault(int(target), []).append(trigger)
        return [Aim(partial(self._insert, triggers), target) for target, triggers in sorted(by_target.items())]

    def poison_texts(self, texts: Sequence[str], rngs: Sequence[random.Random]) -> list[Poisoned | None]:
        """Inserts one of all triggers into each text."""
        return self._insert([*self.triggers], texts, rngs)

    def _insert(
        self, triggers: Sequence[str], texts: Sequence[str], rngs: Sequence[random.Random]
    ) -> list[Poisoned | None]:
        pairs = zip(texts, rngs, strict=True)
        return [insert_words(text, [rng.choice(triggers)], self.place, rng) for text, rng in pairs]
