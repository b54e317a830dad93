"""Entries of the cache: folders that are written once, compared with a record of their files before use."""

from __future__ import annotations

import json
import shutil
import uuid
from contextlib import suppress
from pathlib import Path

from lightning_backdoor.files.hashing import file_sha256

#: name of the file that records the sha256 of every other file of the entry.
RECORD = "entry.json"


class DamagedEntry(Exception):
    """A cache entry that is not what was written; the message says what differs."""


def write_record(written: Path, name: str) -> None:
    """Records the files of a folder that is complete.

    Args:
        written: the folder.
        name: the name that the entry is to have.

    Raises:
        OSError: a file cannot be read or written.
    """
    files = {file.name: file_sha256(file) for file in sorted(written.iterdir())}
    record = {"entry": name, "files": files}
    (written / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def check_record(folder: Path) -> None:
    """Compares an entry with the record in it.

    Raises:
        DamagedEntry: a file was changed, added or removed after it was written, or the record is another's or missing.
        OSError: a file cannot be read.
    """
    try:
        check_is_file(folder / RECORD)
        record = json.loads((folder / RECORD).read_bytes())
        files = dict(record["files"])
        if record["entry"] != folder.name:
            raise DamagedEntry("it belongs to another entry")
        other = sorted({file.name for file in folder.iterdir()} ^ {RECORD, *files})
        if other:
            raise DamagedEntry(f"{other[0]} {'is missing' if other[0] in files else 'was added'}")
        for name in files:
            check_is_file(folder / name)
        changed = next((name for name, digest in files.items() if file_sha256(folder / name) != digest), None)
        if changed is not None:
            raise DamagedEntry(f"{changed} was changed")
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise DamagedEntry(f"{Path(str(error.filename)).name} is missing") from error
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise DamagedEntry(f"{RECORD} is not the record of an entry") from error


def check_is_file(path: Path) -> None:
    """Checks that a path is a file, before it is read: a pipe or device would never end.

    Raises:
        DamagedEntry: it is missing, or something else.
    """
    if not path.is_file():
        raise DamagedEntry(f"{path.name} is {'not a file' if path.exists() else 'missing'}")


def remove_entry(folder: Path) -> None:
    """Removes a damaged entry in one step, so that no process reads it while it is deleted.

    Raises:
        OSError: the entry cannot be removed.
    """
    aside = folder.with_name(f".damaged-{uuid.uuid4().hex}")
    with suppress(FileNotFoundError):  # another process was first
        folder.rename(aside)
        if aside.is_dir() and not aside.is_symlink():
            shutil.rmtree(aside, ignore_errors=True)
        else:
            aside.unlink()
