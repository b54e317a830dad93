"""Atomic writing of files and folders: they appear complete or not at all, even after a kill."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_whole(path: Path, content: str | bytes) -> None:
    """Writes a file in one step, text as UTF-8, in place of an existing one.

    A process that is killed while it writes leaves ``.NAME.partial`` behind, which the next call overwrites.
    """
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Yields an empty folder to fill, which is renamed to ``folder`` when the block ends without an error.

    If another process has created ``folder`` in the meantime, that folder is kept and the new one is deleted.

    Raises:
        OSError: the folder cannot be written.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".partial-{uuid.uuid4().hex}")
    try:
        partial.mkdir()
        yield partial
        partial.replace(folder)
    except OSError:
        if not folder.exists():
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """Yields an empty folder to fill, which takes the place of ``folder`` when the block ends without an error.

    Raises:
        OSError: the folder cannot be written.
    """
    partial = folder.with_name(f".partial-{uuid.uuid4().hex}")
    try:
        partial.mkdir()
        yield partial
        if folder.exists():
            shutil.rmtree(folder)
        partial.replace(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
