"""Atomic writing of files and folders: they appear complete or not at all, even after a kill."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from lightning_backdoor.files.locking import locked_folder


def write_whole(path: Path, content: str | bytes) -> None:
    """Writes a file in one step, text as UTF-8, in place of an existing one.

    A process that is killed while it writes leaves ``.NAME.partial`` behind, which the next call overwrites.
    """
    partial = partial_path(path)
    with partial.open("wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def partial_path(path: Path) -> Path:
    """The file that :func:`write_whole` writes before it replaces ``path``."""
    return path.with_name(f".{path.name}.partial")


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Yields an empty folder to fill, which is renamed to ``folder`` when the block ends without an error.

    If another process has created ``folder`` in the meantime, that folder is kept and the new one is deleted.

    Raises:
        OSError: the folder cannot be written.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        with _partial_folder(folder.parent) as partial:
            yield partial
            partial.replace(folder)
    except OSError:
        if not folder.exists():
            raise


@contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """Yields an empty folder to fill, which takes the place of ``folder`` when the block ends without an error.

    Raises:
        OSError: the folder cannot be written.
    """
    with _partial_folder(folder.parent) as partial:
        yield partial
        if folder.exists():
            shutil.rmtree(folder)
        partial.replace(folder)


@contextmanager
def _partial_folder(parent: Path) -> Iterator[Path]:
    """Yields a new folder to fill and rename, which is removed if it was not; what killed processes left is, too."""
    partial = parent / f".partial-{uuid.uuid4().hex}"
    with ExitStack() as held:
        with locked_folder(
            parent
        ):  # until the new folder is locked, another process would take it for one that is left
            for left in parent.glob(f".partial-{'[0-9a-f]' * 32}"):
                with locked_folder(left, wait=False) as is_left:
                    if is_left:
                        shutil.rmtree(left, ignore_errors=True)
            partial.mkdir()
            held.enter_context(locked_folder(partial))
        try:
            yield partial
        finally:
            shutil.rmtree(partial, ignore_errors=True)
