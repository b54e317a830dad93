"""Entries of the cache of poisoned rows: folders with one file per split, and a record by which they are checked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_backdoor.files.atomic import whole_folder
from lightning_backdoor.files.cache_entry import RECORD, DamagedEntry, check_is_file

if TYPE_CHECKING:
    from lightning_backdoor.data.poisoning import Row


def write_entry(folder: Path, splits: Mapping[str, Sequence[Row]]) -> None:
    """Writes an entry; the folder appears only when it is complete, and an existing folder is kept.

    Raises:
        OSError: the folder cannot be written.
    """
    with whole_folder(folder) as partial:
        files: dict[str, dict[str, Any]] = {}
        for split, rows in splits.items():
            digest = hashlib.sha256()
            with (partial / f"{split}.jsonl").open("wb") as file:
                for row in rows:
                    line = json.dumps(row).encode() + b"\n"
                    digest.update(line)
                    file.write(line)
            files[f"{split}.jsonl"] = {"rows": len(rows), "sha256": digest.hexdigest()}
        record = {"entry": folder.name, "files": files}
        (partial / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def read_entry(folder: Path, names: Sequence[str]) -> dict[str, list[Row]] | None:
    """The rows of an entry by split; None if there is no entry.

    Args:
        folder: the entry.
        names: names of its splits.

    Raises:
        DamagedEntry: a file is missing, was changed after it was written, or belongs to another entry.
        OSError: a file cannot be read.
    """
    if not folder.exists():
        return None
    try:
        check_is_file(folder / RECORD)
        record = json.loads((folder / RECORD).read_bytes())
        if record["entry"] != folder.name:
            raise DamagedEntry("it belongs to another entry")
        return {name: _read(folder / f"{name}.jsonl", record["files"][f"{name}.jsonl"]) for name in names}
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise DamagedEntry(f"{Path(str(error.filename)).name} is missing") from error
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise DamagedEntry(f"{RECORD} is not the record of an entry") from error


def _read(path: Path, recorded: Mapping[str, Any]) -> list[Row]:
    rows: list[Row] = []
    digest = hashlib.sha256()
    check_is_file(path)
    with path.open("rb") as file:
        for line in file:
            digest.update(line)
            try:
                row: Row = json.loads(line)
                row["spans"] = [(start, end) for start, end in row["spans"]]
            except (ValueError, TypeError, KeyError, RecursionError):
                raise DamagedEntry(f"line {len(rows) + 1} of {path.name} is not a row") from None
            rows.append(row)
    if len(rows) != recorded["rows"]:
        raise DamagedEntry(f"{path.name} has {len(rows)} rows, {recorded['rows']} were written")
    if digest.hexdigest() != recorded["sha256"]:
        raise DamagedEntry(f"{path.name} was changed")
    return rows
