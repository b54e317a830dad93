"""Files and folders that other processes see complete or not at all, whenever the writer is killed."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Replaces a text file in one step, as UTF-8; a partial file that a kill left behind is overwritten next time."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w", encoding="utf-8", newline="") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Yields an empty folder that takes the name ``folder`` when the block ends.

    If another process has created ``folder`` in the meantime, its folder is kept and this one is deleted.

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
