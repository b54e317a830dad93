"""What tells one victim or cell from another: a hash of all that determines it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from lightning_backdoor import __version__


def identity(content: Any) -> str:
    """A hash of a config and of the files and folders that it names, under this version of the library.

    Files are read once until :func:`forget_files`.
    """
    files = {name: digest for name in sorted(set(_names(content))) if (digest := _digest(name))}
    return hashlib.sha256(json.dumps([__version__, content, files], sort_keys=True).encode()).hexdigest()[:16]


def forget_files() -> None:
    """Files may have changed, or the working directory that they are looked up in."""
    _digest.cache_clear()


def _names(content: Any, key: str = "") -> Iterable[str]:
    """Strings that may name a file, a folder or a class; ``cpu`` is none, whatever lies in the working directory."""
    if isinstance(content, str):
        own = content.startswith("lightning_backdoor.")  # the version stands for it, wherever it lies
        if not own and (key in ("model", "path") or "." in content or "/" in content):
            yield content
    elif isinstance(content, dict):
        for name, value in content.items():
            yield from _names(value, name)
    elif isinstance(content, list):
        for value in content:
            yield from _names(value, key)


@cache
def _digest(name: str) -> str | None:
    """Of the file or folder of this name, or of the modules in the working directory that a class path names."""
    paths = [Path(name)]
    if re.fullmatch(r"\w+(\.\w+)+", name):
        parts = name.split(".")
        paths += [Path(*parts[:end]).with_suffix(".py") for end in range(1, len(parts))]
    found = hashlib.sha256()
    some = False
    for path in paths:
        try:
            files = sorted(path.rglob("*")) if path.is_dir() else [path]
            for file in filter(Path.is_file, files):
                some = True
                found.update(str(file.relative_to(path)).encode())
                with file.open("rb") as opened:
                    while block := opened.read(1 << 20):
                        found.update(block)
        except (OSError, ValueError):  # a name too long for a file, or with a zero byte in it, is a text
            continue
    return found.hexdigest() if some else None
