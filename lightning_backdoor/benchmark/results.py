"""All that a grid has found, computed once for the files, the terminal and Weights & Biases."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from lightning_backdoor.benchmark.inspections import InspectedVictims, inspected_victims
from lightning_backdoor.benchmark.report.attack_sections import AttackSection, attack_sections
from lightning_backdoor.benchmark.summaries import Summary, over_seeds
from lightning_backdoor.benchmark.table import ResultRow, mark_valid


class Results(NamedTuple):
    """The results of a grid's settled cells.

    Attributes:
        rows: the rows of ``results.csv``.
        comparisons: the rows of ``comparisons.csv``.
        summaries: the rows over seeds.
        inspections: the victims that inspections have judged.
        attacks: what the report shows per attack beside the table.
    """

    rows: list[ResultRow]
    comparisons: list[ResultRow]
    summaries: list[Summary]
    inspections: list[InspectedVictims]
    attacks: list[AttackSection]


def collect_results(rows: list[ResultRow], benign: str | None, cells: Path) -> Results:
    """Computes the results; marks in the rows, in place, which are valid.

    Args:
        rows: the rows of ``results.csv``, still without ``valid``.
        benign: the attack's name under which the grid has its benign victims; None where it has none.
        cells: the folder of the cells' folders. Each cell's ``outcomes.csv`` is read once, and one at a time.
    """
    mark_valid(rows, benign)
    attacks = attack_sections(rows, cells)
    comparisons = [comparison for attack in attacks for comparison in attack.comparisons]
    return Results(rows, comparisons, over_seeds(rows), inspected_victims(rows, benign), attacks)
