"""Ids of victims and cells: hashes of all that determines them.

The policy is described in :mod:`lightning_backdoor.files.identity`. Planning a grid imports no classes, so the
``result_format`` of each class of this library is not available; the two constants below stand for the whole library.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from lightning_backdoor.files.hashing import file_chunks
from lightning_backdoor.files.identity import LIBRARY

#: to be changed if, and only if, the same config gives another victim (attack, poisoning, training); every
#: victim of a grid is then trained again.
VICTIM_FORMAT = "0.1.0"
#: to be changed if, and only if, a test of the same victim gives other numbers (metric, defense, table); every
#: cell of a grid is then tested again, on the existing victims.
RESULTS_FORMAT = "0.1.0"


def identity(content: Any, code_format: str) -> str:
    """A hash of a config, of the files and folders that it names, and of the format number of the code that runs it.

    Each file is read once until :func:`forget_files` is called.
    """
    files = {name: digest for name in sorted(set(_names(content))) if (digest := _digest(name))}
    return hashlib.sha256(json.dumps([code_format, content, files], sort_keys=True).encode()).hexdigest()[:16]


def forget_files() -> None:
    """Forgets the hashes of files, since files or the working directory may have changed."""
    _digest.cache_clear()


def _names(content: Any, key: str = "") -> Iterable[str]:
    """Strings that may name a file, a folder or a user's class; not ``cpu``, even if a file has this name."""
    if isinstance(content, str):
        own = content.startswith(LIBRARY)  # identified by the format number
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
    """Hash of the file or folder of this name, or of the modules in the working directory that a class path names."""
    paths = [Path(name)]
    if re.fullmatch(r"\w+(\.\w+)+", name):
        parts = name.split(".")
        paths += [Path(*parts[:end]).with_suffix(".py") for end in range(1, len(parts))]
    digest = hashlib.sha256()
    exists = False
    for path in paths:
        try:
            files = sorted(path.rglob("*")) if path.is_dir() else [path]
            for file in filter(Path.is_file, files):
                exists = True
                digest.update(str(file.relative_to(path)).encode())
                for chunk in file_chunks(file):
                    digest.update(chunk)
        except (OSError, ValueError):  # too long for a file name, or with a zero byte: the string is a text
            continue
    return digest.hexdigest() if exists else None
