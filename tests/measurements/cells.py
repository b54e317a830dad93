"""Files of the cells behind a table, which grow as parts of a grid are run."""

from __future__ import annotations

import csv
from pathlib import Path

#: the columns that name a cell, whichever machine it was run on.
KEY = ("dataset", "model", "attack", "defense", "seed")


def add_cells(results: Path, cells: Path) -> None:
    """Adds the finished cells of a grid's ``results.csv`` to a file of cells, in place of older ones of that name."""
    lines: dict[tuple[str, ...], dict[str, str]] = {}
    columns: dict[str, None] = {}
    for path in (cells, results):
        if path.exists():
            with path.open(encoding="utf-8", newline="") as file:
                reader = csv.DictReader(file)
                columns |= dict.fromkeys(reader.fieldnames or ())
                lines |= {tuple(line[name] for name in KEY): line for line in reader if not line["error"]}
    cells.parent.mkdir(parents=True, exist_ok=True)
    with cells.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines.values())
