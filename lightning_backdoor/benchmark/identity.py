"""Ids of victims and cells: hashes of all that determines them.

The policy is described in :mod:`lightning_backdoor.files.identity`. Planning a grid imports no classes, so the
``result_format`` of each class of this library is not available; the two constants below stand for the whole library.

A config names files in three ways, and only these are read:

- *Path fields*, by the name of the argument: ``path``, ``file``, ``folder``, ``model``, ``encoder``, ``published``,
  ``victim``, ``selector``, ``pretrained``, ``corpus``, and names that end in ``_path``, ``_file``, ``_folder``,
  ``_model`` or ``_encoder``, or in the plural of these. Files and folders count with their content, and so do the files
  that a source's ``splits`` names outside of its ``path`` or in subfolders that do not count, and those that an
  attack's ``files`` names in its ``folder``.
- *Arguments of a user's own class*: whatever their names, files count with their content if the text that names them
  has a dot or a slash.
- *Class paths*: the modules that they name in the working directory, or elsewhere on the import path if the class is a
  user's own, and the module that defines the class, with the ``__init__.py`` of packages unless it is empty. Modules
  that these import do not count.

Any other text, such as a trigger, is a text, even if a file has this name. Folders are read with their subfolders,
except for the output folder of the grid, and for the working directory and the folders around it, which hold much that
a run does not read, such as its log: of these only the files directly in them count, and for a source only the tables
that it can read.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from lightning_backdoor.benchmark.fragments import Fragment, compose
from lightning_backdoor.files.atomic import partial_path
from lightning_backdoor.files.class_sources import find_class
from lightning_backdoor.files.hashing import file_chunks
from lightning_backdoor.files.identity import LIBRARY
from lightning_backdoor.files.module_sources import module_file
from lightning_backdoor.files.split_names import readable_tables

#: to be changed if, and only if, the same config gives another victim (attack, poisoning, training); every
#: victim of a grid is then trained again.
VICTIM_FORMAT = "6"
#: to be changed if, and only if, a test of the same victim gives other numbers (metric, defense, table); every
#: cell of a grid is then tested again, on the existing victims.
RESULTS_FORMAT = "4"

_RESULTS = ("results.csv", "comparisons.csv", "report.html")
#: the files and folders that a grid writes to its output folder, or leaves there if it is killed while it writes.
WRITTEN = frozenset(
    {
        *("cells", "victims", "grids", "figures", "wandb", "submitit", "journal.jsonl", "log.txt"),
        *(*_RESULTS, *(partial_path(Path(name)).name for name in _RESULTS)),
    }
)
_PATH_FIELD = re.compile(r"(.*_)?(path|file|folder|model|encoder)s?|published|victim|selector|pretrained|corpus")
#: name of the module of a package.
INIT = "__init__.py"
_CLASS_PATH = re.compile(r"\w+(\.\w+)+")
#: packages whose classes are not a user's own.
_KNOWN_PACKAGES = (LIBRARY, "lightning.", "torch.", "torchmetrics.", "transformers.")


def identity(content: Any, code_format: str, output: Path | None = None, also: Iterable[tuple[str, str]] = ()) -> str:
    """A hash of a config, of the files and folders that it names, and of the format number of the code that runs it.

    Each file is read once until :func:`forget_files` is called.

    Args:
        content: the config.
        code_format: the format number.
        output: the grid's output folder, absolute; nothing that the grid writes to it counts.
        also: further files that count, see :func:`named_together`.
    """
    named: dict[str, set[str]] = {}
    for role, name in (*_names(content), *also):
        named.setdefault(name, set()).add(role)
    files = {name: digest for name in sorted(named) if (digest := _digest(name, frozenset(named[name]), output))}
    return hashlib.sha256(json.dumps([code_format, content, files], sort_keys=True).encode()).hexdigest()[:16]


def named_together(config: Fragment, *fragments: Fragment) -> set[tuple[str, str]]:
    """What a config names with some fragments, and not alone: a fragment's split is a file in the config's folder."""
    return {*_names(compose(config, *fragments))} - {*_names(config)}


def forget_files() -> None:
    """Forgets the hashes of files, since files or the working directory may have changed."""
    _digest.cache_clear()
    _tables.cache_clear()


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
            if not content.startswith(_KNOWN_PACKAGES) and (key == "class_path" or find_class(content)):
                yield "class", content
    elif isinstance(content, dict):
        if isinstance(content.get("class_path"), str):
            own_class = not content["class_path"].startswith(_KNOWN_PACKAGES)
        by_tables = key == "source" and _surrounds(content.get("path"))
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


def _split_files(source: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The files of a source's splits that do not count with its folder."""
    folder, splits = source.get("path"), source.get("splits")
    if not isinstance(folder, str) or not isinstance(splits, dict):
        return
    surrounds = _surrounds(folder)
    for name in splits.values():
        if isinstance(name, str) and (surrounds or Path(name).is_absolute() or ".." in Path(name).parts):
            yield "path", str(Path(folder, name))


@cache
def _tables(folder: str, splits: str) -> list[str]:
    """The tables that a source, whose ``splits`` are given as JSON, can read in a folder around the working directory.

    Empty if the folder cannot be read or a split is not a text: the source refuses both before anything is trained.
    """
    try:
        return [str(file) for file in readable_tables(Path(folder).expanduser(), json.loads(splits))]
    except (AttributeError, OSError, TypeError, ValueError):
        return []


def _surrounds(folder: object) -> bool:
    """Whether something names the working directory or a folder around it, of which a run does not read all."""
    try:
        path = Path(folder).expanduser() if isinstance(folder, str) else None
        return path is not None and path.is_dir() and Path.cwd().is_relative_to(path.resolve())
    except (OSError, RuntimeError, ValueError):  # no name of a folder, no home, or no permission
        return False


def _files_of_roles(attack: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The files that an attack names in a folder, which may be the working directory or one around it."""
    folder, files = attack.get("folder"), attack.get("files")
    if isinstance(folder, str) and isinstance(files, dict):
        yield from (("path", str(Path(folder, name))) for name in files.values() if isinstance(name, str))


@cache
def _digest(name: str, roles: frozenset[str], output: Path | None) -> str | None:
    """Hash of the files that a name stands for; None if there are none."""
    digest = hashlib.sha256()
    exists = False
    for path, file in _files(name, roles):
        try:
            if not file.is_file() or (output is not None and _is_output(path, file, output)):
                continue
            if path.name == INIT and not path.stat().st_size:  # keeps the ids of packages that have no code there
                continue
            exists = True
            digest.update(str(file.relative_to(path)).encode(errors="surrogateescape"))
            for chunk in file_chunks(file):
                digest.update(chunk)
        except (OSError, ValueError):  # too long for a file name, or with a zero byte: the string is a text
            continue
    return digest.hexdigest() if exists else None


def _is_output(path: Path, file: Path, output: Path) -> bool:
    """Whether a file, named itself or found in the folder ``path``, is one that the grid writes to its folder."""
    inside = file.resolve()
    if not inside.is_relative_to(output) or inside == output:
        return False
    # a run's data may lie beside what the grid writes, if the output folder is the working directory
    return path.resolve() in output.parents or inside.relative_to(output).parts[0] in WRITTEN


def _files(name: str, roles: Iterable[str]) -> Iterator[tuple[Path, Path]]:
    """The paths that a name may stand for, each with every file in it, or with itself if it is a file."""
    if {"path", "file"} & {*roles}:
        path = Path(name)
        try:
            path = path.expanduser() if "path" in roles else path
            within = [path]
            if path.is_dir():
                whole = not _surrounds(name)
                within = sorted(path.rglob("*") if whole else path.iterdir()) if "path" in roles else []
        except (OSError, RuntimeError, ValueError):  # no name of a file, no home, or no permission
            within = []
        yield from ((path, file) for file in within)
    if "module" in roles:
        parts = name.split(".")
        modules = [Path(*parts[:end]) for end in range(1, len(parts))]
        files = [*(path.with_suffix(".py") for path in modules), *(path / INIT for path in modules)]
        if "class" in roles:
            here = {file.resolve() for file in files}
            files += [file for file in _own_modules(name) if file.resolve() not in here]
        yield from ((file, file) for file in sorted(files, key=lambda file: file.name == INIT))


def _own_modules(class_path: str) -> list[Path]:
    """The modules on the import path that a class path names, and the one that defines the class."""
    parts = class_path.split(".")
    names = [".".join(parts[:end]) for end in range(1, len(parts))]
    source = find_class(class_path)
    if source is not None and not source.module.startswith(_KNOWN_PACKAGES):
        names.append(source.module)
    return [*dict.fromkeys(file for name in names if (file := module_file(name)) is not None)]
