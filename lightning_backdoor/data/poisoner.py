"""What poisoning needs of an attack: its interface, and a target label that is one of the classes."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Protocol, TypeGuard

from lightning_backdoor.data.aims import Aim, PoisonedText, distinct_targets
from lightning_backdoor.data.rows import Rows
from lightning_backdoor.errors import InputError


class Poisoner(Protocol):
    """The interface of an attack for poisoning, implemented by :class:`lightning_backdoor.attacks.BackdoorAttack`.

    Attributes:
        aims: the triggers of the attack, one for each target.
        poison_rate: share of all training rows that are poisoned.
        label_policy: ``dirty``, ``clean`` or ``mixed``.
        negative_rate: share of all training rows that become negatives.
        may_generate: whether poisoned texts that are slow to generate may be generated now, or only read from disk.
        poisons_training: False in the user's phase, which trains on clean rows.
    """

    poison_rate: float
    label_policy: str
    negative_rate: float
    may_generate: bool

    @property
    def aims(self) -> Sequence[Aim]: ...
    @property
    def poisons_training(self) -> bool: ...
    def poison_texts(self, texts: Sequence[str], rngs: Sequence[random.Random]) -> Sequence[PoisonedText | None]: ...
    def negative_texts(
        self, texts: Sequence[str], rngs: Sequence[random.Random]
    ) -> Sequence[PoisonedText | None] | None: ...
    def negative_training_texts(
        self, texts: Sequence[str], rngs: Sequence[random.Random]
    ) -> Sequence[PoisonedText | None] | None: ...
    def poison_key(self) -> str | None: ...


def is_poisoner(module: object) -> TypeGuard[Poisoner]:
    """Whether a module is an attack, by its class, since access to the instance could load its tokenizer."""
    methods = ("poison_texts", "negative_texts", "poison_key")
    return all(callable(getattr(type(module), name, None)) for name in methods)


def tell_labels(attack: Poisoner | None, labels: Sequence[str]) -> None:
    """Tells an attack the names of the classes, if it can be given its target label by name.

    Raises:
        InputError: no class has the name of the target label.
    """
    know_labels = getattr(attack, "know_labels", None)
    if callable(know_labels):
        know_labels(labels)


def show_training(attack: Poisoner, rows: Rows, chosen: Sequence[int]) -> None:
    """Shows an attack the clean training rows, and which of them are drawn for poisoning, if it wants to see them.

    See :meth:`lightning_backdoor.attacks.BackdoorAttack.study_rows`.
    """
    study_rows = getattr(attack, "study_rows", None)
    if callable(study_rows):
        study_rows(rows, chosen)


def poisoned_by(attack: Poisoner | None) -> object:
    """What determines how an attack poisons rows, compared with ``==``; an attack without a key equals nothing."""
    if attack is None:
        return None
    return attack.poison_key() or object(), attack.poisons_training, attack.negative_rate


def check_target(attack: Poisoner, labels: Sequence[str]) -> None:
    """Checks that the target labels of an attack, given by index or by name, are among the labels.

    Raises:
        InputError: one is not.
    """
    tell_labels(attack, labels)
    largest = distinct_targets(attack.aims)[-1]
    if largest >= len(labels):
        known = ", ".join(f"{i} ({name})" for i, name in enumerate(labels))
        raise InputError("target_label", f"{largest} is out of range", f"the labels are {known}")
