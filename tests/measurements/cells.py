"""Files of the cells behind a table, which grow as parts of a grid are run."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

#: a line of ``results.csv`` by its column names.
Line = dict[str, str]

#: the columns that name a cell, whichever machine it was run on.
KEY = ("dataset", "model", "attack", "defense", "seed")


def finished(path: Path) -> list[Line]:
    """The cells of a ``results.csv``, or of a file of cells, that did not fail."""
    with path.open(encoding="utf-8", newline="") as file:
        return [line for line in csv.DictReader(file) if not line["error"]]


def add_cells(results: Path, cells: Path, more: Callable[[Line], Line] | None = None) -> None:
    """Adds the finished cells of a grid's ``results.csv`` to a file of cells, in place of older ones of that name.

    Args:
        results: the grid's ``results.csv``.
        cells: the file of cells, which need not exist.
        more: further columns of a cell of the grid.
    """
    new = [{**line, **(more(line) if more else {})} for line in finished(results)]
    lines = {tuple(line[name] for name in KEY): line for line in [*(finished(cells) if cells.exists() else []), *new]}
    columns = dict.fromkeys(column for line in lines.values() for column in line)
    cells.parent.mkdir(parents=True, exist_ok=True)
    with cells.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines.values())
