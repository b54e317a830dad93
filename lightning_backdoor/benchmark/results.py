"""The results of a grid, computed once for its files, the terminal and Weights & Biases."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from lightning_backdoor.benchmark.missing import MissingCell, failed_cells, missing_text
from lightning_backdoor.benchmark.ranking import mark_best
from lightning_backdoor.benchmark.report.attack_sections import AttackSection, attack_sections
from lightning_backdoor.benchmark.report.flagged_words import words_of_inspection
from lightning_backdoor.benchmark.summaries import InspectedVictims, Summary, inspected_victims, over_seeds
from lightning_backdoor.benchmark.table import ATTACK_NAMES, ResultRow, key_of, mark_valid


class Results(NamedTuple):
    """The results of a grid's cells that are done or have failed.

    Attributes:
        rows: the rows of ``results.csv``.
        comparisons: the rows of ``comparisons.csv``.
        summaries: the lines of the table over seeds, with the best defenses marked.
        inspections: the victims judged by inspections.
        attacks: the report's sections per attack.
        missing: the cells of the grid without numbers: those that have failed, then those without a row.
    """

    rows: list[ResultRow]
    comparisons: list[ResultRow]
    summaries: list[Summary]
    inspections: list[InspectedVictims]
    attacks: list[AttackSection]
    missing: list[MissingCell]

    @property
    def cells_text(self) -> str:
        """How many of the grid's cells have numbers, and why the others have none.

        ``13 cells``, or ``9 of 13 cells (1 failed, 3 not run)``.
        """
        done = sum(not row["error"] for row in self.rows)
        total = done + len(self.missing)
        noun = "cell" if total == 1 else "cells"
        return f"{done} of {total} {noun} ({missing_text(self.missing)})" if self.missing else f"{total} {noun}"

    @property
    def invalid_attacks(self) -> dict[str, str]:
        """Per dataset, model and attack, joined by a dot, why the attack is not valid; valid ones are left out."""
        return {
            " · ".join(key_of(line.names, ATTACK_NAMES)): "; ".join(line.failed_conditions)
            for line in self.summaries
            if line.failed_conditions
        }


def collect_results(
    rows: list[ResultRow], benign: str | None, cells: Path, missing: Sequence[MissingCell] = ()
) -> Results:
    """Computes the results; sets ``excess_asr``, ``valid`` and ``invalid_because`` in the rows, in place.

    Args:
        rows: the rows of ``results.csv``, still without ``valid``.
        benign: name of the attack entry of the benign victims; None if the grid has none.
        cells: the folder that contains the cells' folders. Each ``outcomes.csv`` is read once, one at a time.
        missing: the cells of the grid that have no row.
    """
    mark_valid(rows, benign)
    attacks = attack_sections(rows, cells)
    summaries = over_seeds(rows)
    for attack in attacks:
        lines = [line for line in summaries if key_of(line.names, ATTACK_NAMES) == attack.names]
        mark_best(lines, attack.decisive, attack.working)
    comparisons = [comparison for attack in attacks for comparison in attack.comparisons]
    inspected = {row["cell"] for row in rows if row["inspection_score"] is not None and not row["error"]}
    inspections = inspected_victims(rows, benign, {cell: words_of_inspection(cells / cell) for cell in inspected})
    return Results(rows, comparisons, summaries, inspections, attacks, [*failed_cells(rows), *missing])
