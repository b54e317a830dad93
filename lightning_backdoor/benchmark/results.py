"""The results of a grid: computed once for files, terminal and Weights & Biases, and written to the files."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from lightning_backdoor.benchmark.grid import Cell, Grid
from lightning_backdoor.benchmark.report.attack_sections import COMPARED_COLUMNS, AttackSection, attack_sections
from lightning_backdoor.benchmark.report.page import report_html
from lightning_backdoor.benchmark.running.journal import Journal, lock
from lightning_backdoor.benchmark.summaries import InspectedVictims, Summary, inspected_victims, over_seeds
from lightning_backdoor.benchmark.table import COLUMNS, NUMBERS, ResultRow, csv_text, mark_valid
from lightning_backdoor.files.atomic import write_whole


class Results(NamedTuple):
    """The results of a grid's cells that are done or have failed.

    Attributes:
        rows: the rows of ``results.csv``.
        comparisons: the rows of ``comparisons.csv``.
        summaries: the lines of the table over seeds.
        inspections: the victims judged by inspections.
        attacks: the report's sections per attack.
    """

    rows: list[ResultRow]
    comparisons: list[ResultRow]
    summaries: list[Summary]
    inspections: list[InspectedVictims]
    attacks: list[AttackSection]


def collect_results(rows: list[ResultRow], benign: str | None, cells: Path) -> Results:
    """Computes the results; sets ``valid`` in the rows, in place.

    Args:
        rows: the rows of ``results.csv``, still without ``valid``.
        benign: name of the attack entry of the benign victims; None if the grid has none.
        cells: the folder that contains the cells' folders. Each ``outcomes.csv`` is read once, one at a time.
    """
    mark_valid(rows, benign)
    attacks = attack_sections(rows, cells)
    comparisons = [comparison for attack in attacks for comparison in attack.comparisons]
    return Results(rows, comparisons, over_seeds(rows), inspected_victims(rows, benign), attacks)


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
        rows = [row for cell in grid.cells if (row := _row(cell, journal, folder)) is not None]
        results = collect_results(rows, grid.benign, folder / "cells")
        write_whole(folder / "results.csv", csv_text(results.rows, COLUMNS))
        write_whole(folder / "comparisons.csv", csv_text(results.comparisons, COMPARED_COLUMNS))
        write_whole(folder / "report.html", report_html(grid.path.stem, results, grid.as_yaml(), command))
    return results


def _row(cell: Cell, journal: Journal, folder: Path) -> ResultRow | None:
    event = journal.get("cell", cell.id)
    deleted = not (folder / "cells" / cell.id / "outcomes.csv").exists()
    if event is None or (deleted and "error" not in event):
        return None
    row = {**dict.fromkeys(NUMBERS), **cell.names, **event.get("row", {})}
    row |= {"cell": cell.id, "victim": cell.victim.id, "valid": ""}
    return {**row, "seconds": event.get("seconds"), "error": event.get("error", "")}
