"""Writing a grid's results to its files: ``results.csv``, ``comparisons.csv`` and ``report.html``."""

from __future__ import annotations

from pathlib import Path

from lightning_backdoor.benchmark.grid import Cell, Grid
from lightning_backdoor.benchmark.report.attack_sections import COMPARED_COLUMNS
from lightning_backdoor.benchmark.report.page import report_html
from lightning_backdoor.benchmark.results import Results, collect_results
from lightning_backdoor.benchmark.running.journal import Journal
from lightning_backdoor.benchmark.running.products import Products
from lightning_backdoor.benchmark.table import COLUMNS, NUMBERS, ResultRow, csv_text
from lightning_backdoor.errors import escaped
from lightning_backdoor.files.atomic import write_whole
from lightning_backdoor.files.locking import lock


def write_results(grid: Grid, folder: Path, command: str) -> Results:
    """Writes ``results.csv``, ``comparisons.csv`` and ``report.html`` from all cells that are done or have failed.

    Concurrent callers write one after another.

    Args:
        grid: the grid whose cells are written.
        folder: the grid's output folder.
        command: the command line, for the report.
    """
    with (folder / "log.txt").open("ab") as log:
        lock(log)
        journal = Journal(folder / "journal.jsonl")
        journal.refresh()
        products = Products(folder, journal)
        rows = [row for cell in grid.cells if (row := _row(cell, journal, products)) is not None]
        results = collect_results(rows, grid.benign, folder / "cells")
        write_whole(folder / "results.csv", csv_text(results.rows, COLUMNS))
        write_whole(folder / "comparisons.csv", csv_text(results.comparisons, COMPARED_COLUMNS))
        write_whole(folder / "report.html", report_html(grid.path.stem, results, grid.as_yaml(), command))
    return results


def _row(cell: Cell, journal: Journal, products: Products) -> ResultRow | None:
    """The row of a cell; None if it has not run, or its files are damaged."""
    event = journal.get("cell", cell.id)
    if event is None or ("error" not in event and products.fault(cell)):
        return None
    row = {**dict.fromkeys(NUMBERS), **cell.names}
    row |= {name: number for name, number in event.get("row", {}).items() if name in NUMBERS}
    row |= {"cell": cell.id, "victim": cell.victim.id, "valid": ""}
    return {**row, "seconds": event.get("seconds"), "error": escaped(event.get("error", ""))}
