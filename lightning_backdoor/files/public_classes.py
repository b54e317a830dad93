"""The public classes of the package, read from its sources, so that nothing large is imported to list them."""

from __future__ import annotations

import ast
import inspect
import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

from lightning_backdoor.files.presets import PACKAGE, ROOTS

#: the rooms whose public classes are listed.
ROOMS = ("attacks", "defenses", "callbacks", "data", "victim", "metrics")
ARXIV = re.compile(r"arXiv[: ](\d{4}\.\d{4,5})")


class PublicClass(NamedTuple):
    """A class that a room exports.

    Attributes:
        name: its name, such as ``BadNets``.
        room: the room that exports it, such as ``attacks``.
        summary: first line of its docstring.
        papers: arXiv ids in its docstring and in the docstring of its module.
        bases: names of its base classes, as written.
    """

    name: str
    room: str
    summary: str
    papers: tuple[str, ...]
    bases: tuple[str, ...]

    @property
    def class_path(self) -> str:
        """The path that a config names it by."""
        return f"lightning_backdoor.{self.room}.{self.name}"


@cache
def public_classes() -> tuple[PublicClass, ...]:
    """The classes that the rooms export, by room and then by name.

    >>> next(item for item in public_classes() if item.name == "BadNets").class_path
    'lightning_backdoor.attacks.BadNets'
    """
    found = []
    for room in ROOMS:
        for source in _exported(room):
            found += [made for made in classes_in(source.path, room) if made.name in source.names]
    return tuple(sorted(found, key=lambda item: (ROOMS.index(item.room), item.name)))


def classes_in(path: Path, room: str) -> list[PublicClass]:
    """The classes that a source file defines at its top level, without running it.

    Args:
        path: the file.
        room: the room to name in the result.

    Raises:
        SyntaxError: the file is not Python.
    """
    module = ast.parse(path.read_text(encoding="utf-8"))
    classes = []
    for node in module.body:
        if isinstance(node, ast.ClassDef):
            text = inspect.cleandoc(ast.get_docstring(node) or "")
            papers = dict.fromkeys(ARXIV.findall(f"{text}\n{ast.get_docstring(module) or ''}"))
            bases = tuple(ast.unparse(base) for base in node.bases)
            classes.append(PublicClass(node.name, room, text.partition("\n")[0], tuple(papers), bases))
    return classes


class _Source(NamedTuple):
    """A file, and the names that a room exports from it."""

    path: Path
    names: frozenset[str]


def _exported(room: str) -> list[_Source]:
    """The files from which a room imports what it exports."""
    folder = next(root / room for root in ROOTS if (root / room / "__init__.py").is_file())
    sources = []
    for node in ast.parse((folder / "__init__.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and node.module:
            parts = node.module.split(".")[1:]
            base = folder.parent if parts[0] == room else PACKAGE
            path = base.joinpath(*parts).with_suffix(".py")
            sources.append(_Source(path, frozenset(name.name for name in node.names)))
    return sources
