"""The results of a grid, computed once for its files, the terminal and Weights & Biases."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from lightning_backdoor.benchmark.report.attack_sections import AttackSection, attack_sections
from lightning_backdoor.benchmark.summaries import InspectedVictims, Summary, inspected_victims, over_seeds
from lightning_backdoor.benchmark.table import ResultRow, mark_valid


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
