"""Class paths in a grid: our public classes may be given by their names."""

from __future__ import annotations

from functools import cache
from typing import Any

from lightning_backdoor.commands.parsing.spelling import known_spelling
from lightning_backdoor.files.class_sources import find_class
from lightning_backdoor.files.presets import PACKAGE
from lightning_backdoor.files.public_classes import public_classes

#: class path of the benign victim.
BENIGN = "lightning_backdoor.victim.TextClassifier"


def with_class_paths(content: Any) -> Any:
    """A config with the class path of each public class that it gives by its name, as the command line takes them.

    >>> with_class_paths({"model": {"class_path": "BadNets"}})
    {'model': {'class_path': 'lightning_backdoor.attacks.BadNets'}}
    """
    if isinstance(content, list):
        return [with_class_paths(entry) for entry in content]
    if not isinstance(content, dict):
        return content
    result = {name: with_class_paths(value) for name, value in content.items()}
    if isinstance(path := result.get("class_path"), str):
        result["class_path"] = full_class_path(path)
    if isinstance(trainer := result.get("trainer"), dict):
        for name in {"callbacks", "callbacks+"} & trainer.keys():
            trainer[name] = _callbacks(trainer[name])
    return result


def _callbacks(given: Any) -> Any:
    """A trainer's callbacks, of which some may be given by their class paths or names alone."""
    if isinstance(given, list):
        return [_callbacks(entry) for entry in given]
    return {"class_path": full_class_path(given)} if isinstance(given, str) else given


@cache
def full_class_path(name: str) -> str:
    """The class path of a public class given by its name, alone or after the package's; any other text as it is.

    >>> full_class_path("lightning_backdoor.BadNets"), full_class_path("shout.Shout")
    ('lightning_backdoor.attacks.BadNets', 'shout.Shout')
    """
    alone = name.removeprefix(f"{PACKAGE.name}.")
    if "." in alone:
        return name
    return next((item.class_path for item in public_classes() if known_spelling(alone, [item.name])), name)


def is_benign(class_path: object) -> bool:
    """Whether a class path, or a public name, is that of the benign victim, whichever module it is taken from.

    >>> is_benign("TextClassifier"), is_benign("lightning_backdoor.victim.classifier.TextClassifier")
    (True, True)
    >>> is_benign("lightning_backdoor.attacks.BadNets")
    False
    """
    if not isinstance(class_path, str):
        return False
    path = full_class_path(class_path)
    if path == BENIGN or not path.startswith(f"{PACKAGE.name}."):
        return path == BENIGN
    return find_class(path) == find_class(BENIGN)
