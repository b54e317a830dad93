"""The files that a name in a grid's config stands for, and the hash of their content."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from lightning_backdoor.files.atomic import partial_path
from lightning_backdoor.files.class_sources import find_class
from lightning_backdoor.files.hashing import file_chunks
from lightning_backdoor.files.identity import LIBRARY
from lightning_backdoor.files.module_sources import module_file
from lightning_backdoor.files.packaged import SCHEME, packaged_path, published_files

_RESULTS = ("results.csv", "comparisons.csv", "report.html")
#: the files and folders that a grid writes to its output folder, or leaves there if it is killed while it writes.
WRITTEN = frozenset(
    {
        *("cells", "victims", "grids", "figures", "wandb", "submitit", "journal.jsonl", "log.txt"),
        *(*_RESULTS, *(partial_path(Path(name)).name for name in _RESULTS)),
    }
)
#: name of the module of a package.
INIT = "__init__.py"
#: packages whose classes are not a user's own.
KNOWN_PACKAGES = (LIBRARY, "lightning.", "torch.", "torchmetrics.", "transformers.")


def located(name: str) -> Path:
    """The path that a name stands for.

    Raises:
        RuntimeError: the name begins with ``~``, and the user has no home folder.
        InputError: the name is that of a file in a package, which is not there.
    """
    return packaged_path(name) if name.startswith(SCHEME) else Path(name).expanduser()


def surrounds(folder: object) -> bool:
    """Whether something names the working directory or a folder around it, of which a run does not read all."""
    try:
        path = Path(folder).expanduser() if isinstance(folder, str) else None
        return path is not None and path.is_dir() and Path.cwd().is_relative_to(path.resolve())
    except (OSError, RuntimeError, ValueError):  # no name of a folder, no home, or no permission
        return False


@cache
def named_digest(name: str, roles: frozenset[str], output: Path | None) -> str | None:
    """Hash of the files that a name stands for; None if there are none."""
    digest = hashlib.sha256()
    exists = False
    published = published_files() if name.startswith(SCHEME) else {}
    for path, file in _files(name, roles):
        try:
            if not file.is_file() or (output is not None and _is_output(path, file, output)):
                continue
            if path.name == INIT and not path.stat().st_size:  # keeps the ids of packages that have no code there
                continue
            exists = True
            digest.update(str(file.relative_to(path)).encode(errors="surrogateescape"))
            # a run compares a published hash with the file
            for chunk in [published[file].encode()] if file in published else file_chunks(file):
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
            path = located(name) if "path" in roles or name.startswith(SCHEME) else path
            within = [path]
            if path.is_dir():
                whole = not surrounds(str(path))
                within = sorted(_within(path) if whole else path.iterdir()) if "path" in roles else []
        except (OSError, RuntimeError, ValueError):  # no name of a file, no home, no permission, or not installed
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


def _within(folder: Path) -> Iterator[Path]:
    """The files in a folder and its subfolders, also in those that are links to folders elsewhere.

    A folder that can be reached by several ways is read once, under its own name rather than that of a link to it.
    Left out are what Python compiles, and links to folders that hold the working directory, ``folder`` or the link.
    """
    start = os.path.realpath(folder)
    seen, waiting = set(), [folder]
    for top in waiting:
        for path, folders, files in os.walk(top):
            real = os.path.realpath(path)
            folders[:] = [] if real in seen else sorted({*folders} - {"__pycache__"})
            if real not in seen:
                seen.add(real)
                yield from (Path(path, name) for name in files)
                links = (link for name in folders if (link := Path(path, name)).is_symlink())
                waiting += [link for link in links if not (surrounds(str(link)) or _leads_up(link, start, real))]


def _leads_up(link: Path, *folders: str) -> bool:
    """Whether a link leads to one of some folders or around it, where there is much that a run does not read."""
    return any(Path(folder).is_relative_to(os.path.realpath(link)) for folder in folders)


def _own_modules(class_path: str) -> list[Path]:
    """The modules on the import path that a class path names, and the one that defines the class.

    All classes that are not in ``KNOWN_PACKAGES`` are treated as a user's own, also those of other installed packages:
    the sources of these modules are what identifies them.
    """
    parts = class_path.split(".")
    names = [".".join(parts[:end]) for end in range(1, len(parts))]
    source = find_class(class_path)
    if source is not None and not source.module.startswith(KNOWN_PACKAGES):
        names.append(source.module)
    return [*dict.fromkeys(file for name in names if (file := module_file(name)) is not None)]
