"""Writing a grid's results to its files: ``results.csv``, ``comparisons.csv``, ``report.html`` and ``figures/``."""

from __future__ import annotations

import json
from pathlib import Path

from lightning_backdoor.benchmark.comparisons import COMPARED_COLUMNS
from lightning_backdoor.benchmark.grid import Cell, Grid
from lightning_backdoor.benchmark.missing import DAMAGED, NOT_RUN, VICTIM_FAILED, MissingCell
from lightning_backdoor.benchmark.precision import precision_comment
from lightning_backdoor.benchmark.report.grid_folders import GRID_OF_RESULTS, MEANINGS_OF_RESULTS
from lightning_backdoor.benchmark.report.page import write_page
from lightning_backdoor.benchmark.results import Results, collect_results
from lightning_backdoor.benchmark.running.journal import Journal
from lightning_backdoor.benchmark.running.products import Products
from lightning_backdoor.benchmark.table import COLUMNS, NUMBERS, ResultRow, csv_text
from lightning_backdoor.errors import escaped
from lightning_backdoor.files.atomic import write_whole
from lightning_backdoor.files.locking import lock


def write_results(grid: Grid, folder: Path, command: str) -> Results:
    """Writes ``results.csv``, ``comparisons.csv``, ``report.html`` and ``figures/`` of all that is done or has failed.

    The grid, and what its names stand for, are written beside ``results.csv``, since the folder may hold several.
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
        entries = [_entry(cell, journal, products) for cell in grid.cells]
        missing = [entry for entry in entries if isinstance(entry, MissingCell)]
        rows = [entry for entry in entries if not isinstance(entry, MissingCell)]
        results = collect_results(rows, grid.benign, folder / "cells", missing)
        (folder / GRID_OF_RESULTS).parent.mkdir(exist_ok=True)
        write_whole(folder / GRID_OF_RESULTS, grid.as_yaml())
        write_whole(folder / MEANINGS_OF_RESULTS, json.dumps(grid.meanings, indent=1) + "\n")
        write_whole(folder / "results.csv", csv_text(results.rows, COLUMNS))
        write_whole(folder / "comparisons.csv", csv_text(results.comparisons, COMPARED_COLUMNS))
        trained = precision_comment(folder, (row["victim"] for row in rows))
        write_page(folder, grid.path.stem, results, trained + grid.as_yaml(), command)
    return results


def _entry(cell: Cell, journal: Journal, products: Products) -> ResultRow | MissingCell:
    """The row of a cell, or why it has none: it has not run, or its files are damaged."""
    event = journal.get("cell", cell.id)
    if event is None:
        errors = [(journal.get("victim", victim.id) or {}).get("error") for victim in cell.victim.line]
        failure = next(filter(None, errors), None)
        if failure is not None:
            return MissingCell(cell.names, VICTIM_FAILED, escaped(failure))
        return MissingCell(cell.names, NOT_RUN)
    if "error" not in event and (fault := products.fault(cell)):
        return MissingCell(cell.names, DAMAGED, escaped(fault))
    row = {**dict.fromkeys(NUMBERS), **cell.names}
    row |= {name: number for name, number in event.get("row", {}).items() if name in NUMBERS}
    row |= {"cell": cell.id, "victim": cell.victim.id, "training": cell.victim.training}
    return {**row, "seconds": event.get("seconds"), "error": escaped(event.get("error", ""))}
