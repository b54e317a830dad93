"""Ids of victims and cells: hashes of all that determines them.

The policy is described in :mod:`lightning_backdoor.files.identity`. Planning a grid imports no classes, so the
``result_format`` of each class of this library is not available; the two constants below stand for the whole library.

A config names files in three ways, and only these are read:

- *Path fields*, by the name of the argument: ``path``, ``file``, ``folder``, ``model``, ``encoder``, ``published``,
  ``victim``, ``selector``, ``pretrained``, ``corpus``, and names that end in ``_path``, ``_file``, ``_folder``,
  ``_model`` or ``_encoder``, or in the plural of these. Files and folders count with their content, also those in
  installed packages, and so do the files that a source's ``splits`` names outside of its ``path``, through a link or in
  subfolders that do not count, and those that an attack's ``files`` names in its ``folder``.
- *Arguments of a user's own class*: whatever their names, files count with their content if the text that names them
  has a dot or a slash.
- *Class paths*: the modules that they name in the working directory, or elsewhere on the import path if the class is a
  user's own, and the module that defines the class, with the ``__init__.py`` of packages unless it is empty. Modules
  that these import do not count.

Any other text, such as a trigger, is a text, even if a file has this name. Folders are read with their subfolders, also
those that are links, except for the output folder of the grid, for links that lead upwards, and for the working
directory and the folders around it, which hold much that a run does not read, such as its log: of these only the files
directly in them count, and for a source only the tables that it can read.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from lightning_backdoor.benchmark.fragments import Fragment
from lightning_backdoor.benchmark.named_files import KNOWN_PACKAGES, located, named_digest, surrounds
from lightning_backdoor.files.class_sources import find_class
from lightning_backdoor.files.identity import LIBRARY
from lightning_backdoor.files.packaged import SCHEME
from lightning_backdoor.files.split_names import readable_tables

#: to be changed if, and only if, the same config gives another victim (attack, poisoning, training); every
#: victim of a grid is then trained again.
VICTIM_FORMAT = "6"
#: to be changed if, and only if, a test of the same victim gives other numbers (metric, defense, table); every
#: cell of a grid is then tested again, on the existing victims.
RESULTS_FORMAT = "4"

_PATH_FIELD = re.compile(r"(.*_)?(path|file|folder|model|encoder)s?|published|victim|selector|pretrained|corpus")
_CLASS_PATH = re.compile(r"\w+(\.\w+)+")


def identity(content: Any, code_format: str, output: Path | None = None, also: Iterable[tuple[str, str]] = ()) -> str:
    """A hash of a config, of the files and folders that it names, and of the format number of the code that runs it.

    Each file is read once until :func:`forget_files` is called.

    Args:
        content: the config.
        code_format: the format number.
        output: the grid's output folder, absolute; nothing that the grid writes to it counts.
        also: further files that count, see :func:`named_beside`.
    """
    named: dict[str, set[str]] = {}
    for role, name in (*_names(content), *also):
        named.setdefault(name, set()).add(role)
    files = {name: digest for name in sorted(named) if (digest := named_digest(name, frozenset(named[name]), output))}
    return hashlib.sha256(json.dumps([code_format, content, files], sort_keys=True).encode()).hexdigest()[:16]


def named_beside(config: Fragment, part: Fragment) -> set[tuple[str, str]]:
    """The names, with their roles, that are found in a config but not in a part of it that is read by itself.

    For example, a victim's config has a source's ``path`` and a test adds its ``splits``: the file of a split is named
    by neither of them, only by both together.
    """
    return {*_names(config)} - {*_names(part)}


def forget_files() -> None:
    """Forgets the hashes of files, and where they and classes are, since all this or the directory may have changed."""
    for known in (named_digest, _tables, _is_class, _leads_out):
        known.cache_clear()


def _names(content: Any, key: str = "", own_class: bool = False) -> Iterator[tuple[str, str]]:
    """The texts in a config that may name what a run reads, each with its role.

    The roles are ``path``, ``file``, ``module`` for modules in the working directory, and ``class`` for a user's own
    class, which may be anywhere on the import path.
    """
    if isinstance(content, str):
        if content.startswith(LIBRARY):  # identified by the format number
            return
        if _PATH_FIELD.fullmatch(key):
            yield "path", content
        elif own_class and ("." in content or "/" in content):
            yield "file", content
        if _CLASS_PATH.fullmatch(content):
            yield "module", content
            # a file may be named like an installed package: datasets.csv
            if not content.startswith(KNOWN_PACKAGES) and (key == "class_path" or _is_class(content)):
                yield "class", content
    elif isinstance(content, dict):
        if isinstance(content.get("class_path"), str):
            own_class = not content["class_path"].startswith(KNOWN_PACKAGES)
        by_tables = key == "source" and surrounds(content.get("path"))
        for name, value in content.items():
            if name != "path" or not by_tables:
                yield from _names(value, name, own_class)
        if by_tables:
            yield from (("path", file) for file in _tables(content["path"], json.dumps(content.get("splits"))))
        yield from _split_files(content)
        yield from _files_of_roles(content)
    elif isinstance(content, list):
        for value in content:
            yield from _names(value, key, own_class)


@cache  # all cells of a grid have the same texts, and a search for a class looks through the import path
def _is_class(text: str) -> bool:
    return find_class(text) is not None


def _split_files(source: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The files of a source's splits that do not count with its folder."""
    folder, splits = source.get("path"), source.get("splits")
    if not isinstance(folder, str) or not isinstance(splits, dict):
        return
    around = surrounds(folder)
    for name in splits.values():
        if isinstance(name, str) and (around or _leads_out(folder, name)):
            yield "path", _in_folder(folder, name)


@cache
def _leads_out(folder: str, name: str) -> bool:
    """Whether a name does not stand for a file below a folder itself: it goes upwards, or through a link."""
    below = Path(name).parent
    if Path(name).is_absolute() or ".." in Path(name).parts:
        return True
    try:
        path = located(folder).resolve()
        return (path / below).resolve() != path / below
    except (OSError, RuntimeError, ValueError):  # no name of a folder
        return False


def _in_folder(folder: str, name: str) -> str:
    packaged = folder.startswith(SCHEME) and not Path(name).is_absolute()
    return f"{folder}/{name}" if packaged else str(Path(folder, name))


@cache
def _tables(folder: str, splits: str) -> list[str]:
    """The tables that a source, whose ``splits`` are given as JSON, can read in a folder around the working directory.

    Empty if the folder cannot be read or a split is not a text: the source refuses both before anything is trained.
    """
    try:
        return [str(file) for file in readable_tables(Path(folder).expanduser(), json.loads(splits))]
    except (AttributeError, OSError, TypeError, ValueError):
        return []


def _files_of_roles(attack: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The files that an attack names in a folder, which may be the working directory or one around it."""
    folder, files = attack.get("folder"), attack.get("files")
    if isinstance(folder, str) and isinstance(files, dict):
        yield from (("path", _in_folder(folder, name)) for name in files.values() if isinstance(name, str))
