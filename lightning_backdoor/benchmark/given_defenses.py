"""Defenses as they are given in Python, as the callbacks that attach them to a test."""

from __future__ import annotations

import copy
import pydoc
from collections.abc import Iterable, Mapping

from lightning_backdoor.callbacks import InferenceDefense, InspectionCallback
from lightning_backdoor.defenses import Defense, Inspection
from lightning_backdoor.errors import InputError, did_you_mean, reason
from lightning_backdoor.files.names import check_name
from lightning_backdoor.files.public_classes import class_named, public_classes

DefenseCallback = InferenceDefense | InspectionCallback
#: a defense: an object, its callback, its class, or the name of its class.
Given = Defense | Inspection | DefenseCallback | type | str


def defense_callbacks(defenses: Given | Iterable[Given] | Mapping[str, Given] | None) -> dict[str, DefenseCallback]:
    """The callback of each defense, by its name in the results.

    Args:
        defenses: one, several, or several by name; None for none. Without a name, a defense is named like its class,
            with a number if there are several of the class. Callbacks are copied, so that they keep their own names.

    Raises:
        InputError: something is not a defense that acts on a trained model, or a name is not one for files.
    """
    if defenses is None:
        return {}
    if isinstance(defenses, Mapping):
        named = [*defenses.items()]
    elif isinstance(defenses, Iterable) and not isinstance(defenses, str | type):
        named = [("", given) for given in defenses]
    else:
        named = [("", defenses)]
    result: dict[str, DefenseCallback] = {}
    for name, given in named:
        made = _made(given)
        if isinstance(made, DefenseCallback):
            callback: DefenseCallback = copy.copy(made)
        else:
            callback = InferenceDefense(made) if isinstance(made, Defense) else InspectionCallback(made)
        algorithm = callback.defense if isinstance(callback, InferenceDefense) else callback.inspection
        callback.name = _free(name or callback.name or type(algorithm).__name__, result)
        check_name(callback.name, "defenses")
        result[callback.name] = callback
    return result


def _free(name: str, taken: Mapping[str, object]) -> str:
    """A name that is not taken: the name itself, or with a number after it."""
    number = 2
    free = name
    while free in taken:
        free, number = f"{name} {number}", number + 1
    return free


def _made(given: object) -> Defense | Inspection | DefenseCallback:
    made = _class_named(given) if isinstance(given, str) else given
    if isinstance(made, type):
        try:
            made = made()
        except TypeError as error:  # an abstract class, or one that needs arguments
            problem = f"{made.__name__} cannot be made without arguments ({reason(error)})"
            raise InputError("defenses", problem, f"give {made.__name__}(...)") from None
    if isinstance(made, Defense | Inspection | DefenseCallback):
        return made
    problem = f"{type(made).__name__} does not act on a trained model"
    raise InputError("defenses", problem, "give a Defense or an Inspection; train a victim under any other defense")


def _class_named(name: str) -> type:
    """The class of a name, such as ``Strip``, ``gradient_attention`` or ``length.Length``.

    Raises:
        InputError: no class has this name.
    """
    defenses = [item for item in public_classes() if item.kind == "defenses"]
    public = class_named(name, defenses)
    made = pydoc.locate(public.class_path) if public else pydoc.locate(name) if "." in name else None
    if isinstance(made, type):
        return made
    meant = did_you_mean(name, [item.name for item in defenses])
    raise InputError(
        "defenses", f"there is no defense {name[:100]!r}", meant or "lightning-backdoor list defenses names them"
    )
