"""Config fragments, in the form of a ``--config`` file: strict reading, classes by name, merging, and writing."""

from __future__ import annotations

import datetime
import json
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from lightning_backdoor.commands.parsing.spelling import known_spelling
from lightning_backdoor.errors import InputError, reason
from lightning_backdoor.files.bounded_yaml import read_bounded
from lightning_backdoor.files.class_sources import find_class
from lightning_backdoor.files.presets import PACKAGE
from lightning_backdoor.files.public_classes import public_classes

Fragment = dict[str, Any]
#: class path of the benign victim.
BENIGN = "lightning_backdoor.victim.TextClassifier"


def compose(*fragments: Fragment) -> Fragment:
    """Merges fragments, later ones overriding earlier ones, as the command line does with ``--config`` files.

    Mappings are merged, ``NAME+`` appends to ``NAME``, a list or a single entry, and anything else is replaced. A class
    that replaces another one takes none of the other's arguments, except for ``model`` and ``data`` of the config
    itself: an attack keeps the arguments of the model entry, and a dataset keeps the arguments of the base. (The
    command line imports the classes, and keeps the arguments that the new class also has.)

    >>> compose({"trainer": {"callbacks": ["A"], "devices": 1}}, {"trainer": {"callbacks+": ["B"], "devices": 2}})
    {'trainer': {'callbacks': ['A', 'B'], 'devices': 2}}
    """
    result: Fragment = {}
    for fragment in fragments:
        for key, value in fragment.items():
            name = key.removesuffix("+")
            below = result.get(name)
            if key != name:
                kept = below if isinstance(below, list) else [below] if below else []
                result[name] = [*kept, *(value if isinstance(value, list) else [value])]
            elif isinstance(value, dict):
                below = below if isinstance(below, dict) else {}
                replaced = "class_path" in value and value["class_path"] != below.get("class_path")
                result[name] = compose({} if replaced and name not in ("model", "data") else below, value)
            else:
                result[name] = value
    return result


def read_yaml(path: Path) -> Fragment:
    """Reads a mapping from a file, with text as keys and JSON types as values; a date becomes text.

    Raises:
        InputError: the file is missing, malformed or out of the bounds of :mod:`lightning_backdoor.files.bounded_yaml`,
            is not a mapping, or contains a name that is neither text nor a whole number, or a value of
            another type.
    """
    text = read_bounded(path)
    try:
        content = yaml.load(text, _Loader)
    except Exception as error:  # beside YAMLError, whatever Python raises for dates and numbers that are none
        raise InputError("config", f"{path} is not YAML ({reason(error, 150)})", "correct it") from None
    if not isinstance(content, dict):
        raise InputError("config", f"{path} does not hold a mapping", "give keys and values")
    try:
        plain: Fragment = json.loads(json.dumps(content, default=_date_text))
    except ValueError as error:  # such as numbers of thousands of digits
        raise InputError("config", f"{path} has an unusable value ({reason(error, 150)})", "correct it") from None
    return plain


def _date_text(value: Any) -> str:
    if not isinstance(value, datetime.date):
        raise ValueError(f"a {type(value).__name__}")
    return str(value)


def yaml_text(content: Fragment) -> str:
    """A fragment as YAML text."""
    return str(yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120))


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Rejects names that YAML reads neither as text nor as whole numbers, such as ``no``."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> Any:
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:merge":
                name = self.construct_object(key, deep=True)
                if type(name) not in (str, int):
                    problem = f"the name {name} is not text: quote it"
                    raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return super().construct_mapping(node, deep)


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


def at_test(fragment: Fragment) -> Fragment | None:
    """The fragment of a defense that acts at test, with its callback appended to those of the victim's training.

    The callback logs without a name prefix, since a cell has only one defense.

    Returns:
        The fragment, or None if it does not have exactly one callback.

    >>> at_test({"trainer": {"callbacks": {"class_path": "a.B", "init_args": {"name": "b", "texts": 3}}}})
    {'trainer': {'callbacks+': [{'class_path': 'a.B', 'init_args': {'texts': 3}}]}}
    """
    trainer = dict(fragment.get("trainer", {}))
    given = compose({"callbacks+": trainer.pop("callbacks", None) or []})
    callbacks = compose(given, {"callbacks+": trainer.pop("callbacks+", None) or []})["callbacks"]
    if len(callbacks) != 1 or not isinstance(callbacks[0], dict):
        return None
    arguments = {name: value for name, value in (callbacks[0].get("init_args") or {}).items() if name != "name"}
    return {**fragment, "trainer": {**trainer, "callbacks+": [{**callbacks[0], "init_args": arguments}]}}


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
