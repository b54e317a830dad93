"""Entries of the cache of poisoned texts: folders with one file per kind of rows, and a record that checks them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_backdoor.data.rows import Rewritten
from lightning_backdoor.files.atomic import whole_folder
from lightning_backdoor.files.cache_entry import RECORD, DamagedEntry, check_is_file


def write_entry(folder: Path, parts: Mapping[str, Rewritten]) -> None:
    """Writes an entry; the folder appears only when it is complete, and an existing folder is kept.

    Args:
        folder: the entry.
        parts: by name, what an attack has written; one file each, one line per text.

    Raises:
        OSError: the folder cannot be written.
    """
    with whole_folder(folder) as partial:
        files: dict[str, dict[str, Any]] = {}
        for name, part in parts.items():
            digest = hashlib.sha256()
            with (partial / f"{name}.jsonl").open("wb") as file:
                for position, text, spans in zip(*part, strict=True):
                    line = json.dumps({"position": position, "text": text, "spans": spans}).encode() + b"\n"
                    digest.update(line)
                    file.write(line)
            files[f"{name}.jsonl"] = {"rows": len(part.positions), "sha256": digest.hexdigest()}
        record = {"entry": folder.name, "files": files}
        (partial / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def read_entry(folder: Path, names: Sequence[str]) -> dict[str, Rewritten] | None:
    """The parts of an entry by name; None if there is no entry.

    Args:
        folder: the entry.
        names: names of its parts.

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


def _read(path: Path, recorded: Mapping[str, Any]) -> Rewritten:
    part = Rewritten([], [], [])
    digest = hashlib.sha256()
    check_is_file(path)
    with path.open("rb") as file:
        for line in file:
            digest.update(line)
            try:
                row = json.loads(line)
                spans = tuple((start, end) for start, end in row["spans"])
                for column, value in zip(part, (row["position"], row["text"], spans), strict=True):
                    column.append(value)
            except (ValueError, TypeError, KeyError, RecursionError):
                raise DamagedEntry(f"line {len(part.positions) + 1} of {path.name} is not a row") from None
    if len(part.positions) != recorded["rows"]:
        raise DamagedEntry(f"{path.name} has {len(part.positions)} rows, {recorded['rows']} were written")
    if digest.hexdigest() != recorded["sha256"]:
        raise DamagedEntry(f"{path.name} was changed")
    return part
