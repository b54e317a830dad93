"""Bounds on YAML and JSON text: what would stall or kill its reader is refused before it is read."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import yaml

from lightning_backdoor.errors import InputError

#: upper limit on the characters of a text.
LONGEST = 1 << 20
#: upper limit on the lists and mappings inside one another.
DEEPEST = 50
#: upper limit on the values of a text, where each alias counts as a copy of what it stands for.
MOST_VALUES = 20_000


class _Size(NamedTuple):
    """Number of values in a node, itself included, and number of levels below it."""

    values: int
    levels: int


def out_of_bounds(text: str) -> str | None:
    """What makes a text unfit to be read: its length, depth, aliases, or a name that a mapping gives twice.

    Text that is not YAML is within the bounds, since its reader stops there and reports it.

    Returns:
        The problem, or None.

    >>> out_of_bounds("a: &list [1, 2]\\nb: *list")
    >>> out_of_bounds("a: &self [*self]")
    "contains itself: 'self'"
    >>> out_of_bounds("{a: 1, a: 2}")
    'is ambiguous: the name a is given twice'
    """
    if len(text) > LONGEST:
        return f"has {len(text)} characters, more than {LONGEST}"
    try:
        return _problem(text)
    except (yaml.YAMLError, ValueError):  # a ValueError for characters that cannot be encoded
        return None


def read_bounded(path: Path, field: str = "config") -> str:
    """The text of a YAML file, which is within the bounds.

    Raises:
        InputError: the file cannot be read, or :func:`out_of_bounds` finds a problem.
    """
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(LONGEST + 1)
    except (OSError, ValueError) as error:
        if isinstance(error, UnicodeDecodeError):
            raise InputError(field, f"{path} is not YAML ({error})", "save it as UTF-8") from None
        raise InputError(field, f"{path} cannot be read", "give a YAML file") from None
    problem = f"is longer than {LONGEST} characters" if len(text) > LONGEST else out_of_bounds(text)
    if problem:
        raise InputError(field, f"{path} {problem}", "correct it")
    return text


def _problem(text: str) -> str | None:
    open_nodes = [_OpenNode(None, False)]
    anchored: dict[str, _Size] = {}
    for event in yaml.parse(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        node = open_nodes[-1]
        if isinstance(event, yaml.CollectionStartEvent):
            node.takes_name(None)
            open_nodes.append(_OpenNode(event.anchor, isinstance(event, yaml.MappingStartEvent)))
            anchored.pop(event.anchor, None)  # a later anchor of the same name replaces it
        elif isinstance(event, yaml.CollectionEndEvent):
            size = _Size(node.values, node.levels)
            open_nodes.pop()
            open_nodes[-1].add(size)
            if node.anchor:
                anchored[node.anchor] = size
        elif isinstance(event, yaml.ScalarEvent):
            if not node.takes_name(event.value):
                return f"is ambiguous: the name {event.value[:100]} is given twice"
            node.add(_Size(1, 0))
            if event.anchor:
                anchored[event.anchor] = _Size(1, 0)
        elif isinstance(event, yaml.AliasEvent):
            if any(event.anchor == other.anchor for other in open_nodes):
                return f"contains itself: {event.anchor!r}"
            node.takes_name(None)
            node.add(anchored.get(event.anchor, _Size(1, 0)))
        if len(open_nodes) - 1 + open_nodes[-1].levels > DEEPEST:
            return f"is nested deeper than {DEEPEST} levels"
        if sum(other.values for other in open_nodes) > MOST_VALUES:
            return f"has more than {MOST_VALUES} values, each alias counted as a copy"
    return None


class _OpenNode:
    """A list or mapping whose end is not read yet."""

    def __init__(self, anchor: str | None, mapping: bool) -> None:
        self.anchor = anchor
        self.values = 1
        self.levels = 1
        self.names: set[str] | None = set() if mapping else None
        self.name_comes = mapping

    def add(self, size: _Size) -> None:
        self.values += size.values
        self.levels = max(self.levels, size.levels + 1)

    def takes_name(self, name: str | None) -> bool:
        """Reads a node, whose text is ``name`` if it has one; False if it is a name that the mapping has already."""
        if self.names is None:
            return True
        twice = self.name_comes and name != "<<" and name in self.names
        if self.name_comes and name is not None:
            self.names.add(name)
        self.name_comes = not self.name_comes
        return not twice
