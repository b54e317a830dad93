"""A hostile input: the options of one command, and the exit statuses that are right for them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple


class HostileInput(NamedTuple):
    """One command with input that is malformed, misleading or malicious.

    Attributes:
        name: describes the input in a failed test.
        args: the command and its options.
        statuses: the exit statuses that are right: 2 where the input must be refused, 0 where it must be read, both
            where either is right and only a traceback or code that runs is wrong.
    """

    name: str
    args: list[str]
    statuses: tuple[int, ...] = (2,)


class Files:
    """A folder that is filled with numbered files and folders, so that inputs never share one."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._folder = folder
        self._names = (f"{number:04d}" for number in range(10_000))

    def path(self, suffix: str = "") -> Path:
        """A path with the given suffix that does not exist yet."""
        return self._folder / f"{next(self._names)}{suffix}"

    def file(self, content: bytes | str, suffix: str) -> str:
        """Writes a file; returns its path."""
        path = self.path(suffix)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    def json(self, content: Any, suffix: str = ".json") -> str:
        """Writes a value as a JSON file; returns its path."""
        return self.file(json.dumps(content), suffix)

    def tree(self, files: dict[str, bytes | str]) -> str:
        """Writes a folder with the given files; returns its path."""
        folder = self.path()
        for name, content in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(folder)


Inputs = Iterator[HostileInput]
