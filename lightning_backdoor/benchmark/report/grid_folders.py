"""Reading the results of a grid from its output folder, without running anything."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

from lightning_backdoor.benchmark.grid_file import GridFile
from lightning_backdoor.benchmark.meanings import BENIGN, Meanings, digest, meanings_of_text
from lightning_backdoor.benchmark.missing import NOT_RUN, MissingCell
from lightning_backdoor.benchmark.names import name_problem, of_csv_field
from lightning_backdoor.benchmark.precision import precision_comment
from lightning_backdoor.benchmark.report.source import Source
from lightning_backdoor.benchmark.table import COLUMNS, NAMES, NUMBERS, ResultRow, key_of
from lightning_backdoor.errors import InputError, escaped
from lightning_backdoor.files.names import check_name

#: columns without which a file is not a ``results.csv``; version 0.1.0 wrote fewer columns than this version.
NEEDED = (*NAMES, "seed", "cell", "error")
#: the grid that ``results.csv`` was written for, in the output folder; each launch adds its grid beside it at once.
GRID_OF_RESULTS = Path("grids", "results.yaml")
#: what the names of this grid stand for, with the files that it read.
MEANINGS_OF_RESULTS = GRID_OF_RESULTS.with_suffix(".json")


def is_grid(folder: Path) -> bool:
    """Whether a folder is the output folder of a grid."""
    return (folder / "journal.jsonl").is_file() or ((folder / "results.csv").is_file() and (folder / "cells").is_dir())


def read_grid(folder: Path, label: str) -> Source:
    """Reads ``results.csv`` of a grid, and the grid that it was written for, from ``grids/``.

    In a folder of an earlier version, which does not say which grid that is, it is the newest.

    Args:
        folder: the output folder.
        label: a short name for it.

    Raises:
        InputError: ``results.csv`` is missing or not one, or the grid's file is damaged.
    """
    path = folder / "results.csv"
    if not path.is_file():
        raise InputError("RUNS", f"{escaped(str(path))} is missing", "run the grid's command, which writes it")
    rows = [_row(line, path, number) for number, line in enumerate(_lines(path), 2)]
    kept = folder / GRID_OF_RESULTS
    if not kept.is_file():
        kept = max(folder.glob("grids/*.yaml"), key=lambda file: file.stat().st_mtime_ns, default=kept)
    grid = GridFile(kept) if kept.is_file() else None
    missing = _missing(grid, rows)
    benign = BENIGN if grid is None else grid.benign
    for names in (*rows, *(cell.names for cell in missing)):
        names["attack"] = BENIGN if names["attack"] == benign else names["attack"]
    for row in rows:
        row["cell"] = str(folder / "cells" / row["cell"])
    configuration = "" if grid is None else kept.read_text(encoding="utf-8")
    configuration = precision_comment(folder, (row["victim"] for row in rows)) + configuration
    return Source(folder, label, label, rows, _meanings(grid, folder, label, rows), missing, configuration)


def _lines(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            lacking = [name for name in NEEDED if name not in (reader.fieldnames or ())]
            lines = [*reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise _error(path, f"cannot be read ({error})") from None
    if lacking:
        raise _error(path, f"has no column {lacking[0]!r}")
    return lines


def _row(line: dict[str, Any], path: Path, number: int) -> ResultRow:
    """A row of ``results.csv`` with its types.

    Raises:
        InputError: a field has not the type of its column, or is not a name.
    """
    where = f"line {number}"
    if None in line or None in line.values():
        raise _error(path, f"{where}, has not as many fields as there are columns")
    row: ResultRow = dict.fromkeys(COLUMNS)
    for column in COLUMNS:
        field = line.get(column) or ""
        if column in NUMBERS or column == "seconds":
            try:
                value = None if not field else int(field) if field.isdecimal() else float(field)
                if value is not None and not math.isfinite(value):
                    raise ValueError(value)
            except (ValueError, OverflowError):
                raise _error(path, f"{where}, has {field[:40]!r} as {column}") from None
            row[column] = value
        else:
            row[column] = of_csv_field(field)
    if "training" not in line:  # of version 0.1.0: not known
        row["training"] = None
    for name in NAMES:
        if problem := name_problem(row[name]):
            raise _error(path, f"{where}, has a {name} that {problem}")
    if not row["seed"].isdecimal():
        raise _error(path, f"{where}, has {row['seed'][:40]!r} as seed")
    try:
        check_name(row["cell"])
    except InputError as error:
        raise _error(path, f"{where}, has a cell that is unusable: {error.problem}") from None
    row["error"] = escaped(row["error"])
    return row


def _missing(grid: GridFile | None, rows: list[ResultRow]) -> list[MissingCell]:
    """The cells of the grid that ``results.csv`` does not have."""
    done = {key_of(row) for row in rows}
    planned = () if grid is None else grid.cell_names()
    return [MissingCell(names, NOT_RUN) for names in planned if tuple(names.values()) not in done]


def _meanings(grid: GridFile | None, folder: Path, label: str, rows: list[ResultRow]) -> Meanings:
    """What each name stands for, as it was recorded; without a record by the grid, without both as in no other source.

    Raises:
        InputError: the record is damaged.
    """
    if grid is None:
        return {axis: {row[axis]: digest(label) for row in rows} for axis in NAMES}
    path = folder / MEANINGS_OF_RESULTS
    if not path.is_file():  # of an earlier version
        return meanings_of_text(grid)
    try:
        recorded = json.loads(path.read_text(encoding="utf-8"))
        return {axis: {str(name): str(meaning) for name, meaning in recorded[axis].items()} for axis in NAMES}
    except (AttributeError, KeyError, OSError, RecursionError, TypeError, ValueError):
        raise _error(path, "is not what benchmark wrote") from None


def _error(path: Path, problem: str) -> InputError:
    return InputError(
        "RUNS", f"{escaped(str(path))}: {problem}", "give the output folder of a grid as benchmark left it"
    )
