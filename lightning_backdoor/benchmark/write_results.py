"""The files at the end of a grid: ``results.csv``, ``comparisons.csv`` and ``report.html``."""

from __future__ import annotations

from pathlib import Path

from lightning_backdoor.benchmark.grid import Cell, Grid
from lightning_backdoor.benchmark.report.page import report_html
from lightning_backdoor.benchmark.running.journal import Journal, waited_for
from lightning_backdoor.benchmark.table import (
    COLUMNS,
    COMPARED,
    INTERVALS,
    METRICS,
    Row,
    comparisons,
    csv_text,
    mark_valid,
)
from lightning_backdoor.files.atomic import write_whole


def write_results(grid: Grid, folder: Path, command: str) -> tuple[list[Row], list[Row]]:
    """Writes the files of all cells of the grid that are settled; returns the rows of the first two.

    Two callers at once come one after the other.

    Args:
        grid: whose cells they are.
        folder: of its output.
        command: that was given, for the report.
    """
    with waited_for(folder / "log.txt"):
        journal = Journal(folder / "journal.jsonl")
        journal.refresh()
        rows = [row for cell in grid.cells if (row := _row(cell, journal, folder)) is not None]
        mark_valid(rows, grid.benign)
        compared = comparisons(rows, folder / "cells")
        write_whole(folder / "results.csv", csv_text(rows, COLUMNS))
        write_whole(folder / "comparisons.csv", csv_text(compared, COMPARED))
        page = report_html(grid.path.stem, rows, compared, folder / "cells", grid.as_yaml(), command)
        write_whole(folder / "report.html", page)
    return rows, compared


def _row(cell: Cell, journal: Journal, folder: Path) -> Row | None:
    event = journal.get("cell", cell.id)
    deleted = not (folder / "cells" / cell.id / "outcomes.csv").exists()
    if event is None or (deleted and "error" not in event):
        return None
    unknown = dict.fromkeys((*METRICS, *INTERVALS, "n_clean", "n_poisoned"))
    ids = {"cell": cell.id, "victim": cell.victim.id}
    ends = {"seconds": event.get("seconds"), "error": event.get("error", "")}
    return {**unknown, **cell.names, **event.get("row", {}), **ids, **ends, "valid": ""}
