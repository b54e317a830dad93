"""How well inspections separate backdoored from benign victims, over all victims of a grid."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from lightning_backdoor.benchmark.detection import auroc
from lightning_backdoor.benchmark.table import ResultRow, grouped

INSPECTION_COLUMNS = ("dataset", "model", "defense", "benign", "attacked", "auroc")


class InspectedVictims(NamedTuple):
    """The victims of one dataset and model that one inspection has judged.

    Attributes:
        names: dataset, model and defense; the defense is the inspection.
        benign: rows of the benign victims, highest score first.
        attacked: rows of the victims under an attack, highest score first.
        auroc: probability that an attacked victim scores above a benign one, ties counting half, over attacks and
            seeds; None (undefined) if there are no benign or no attacked victims.
    """

    names: dict[str, str]
    benign: list[ResultRow]
    attacked: list[ResultRow]
    auroc: float | None

    def as_row(self) -> ResultRow:
        """The columns ``INSPECTION_COLUMNS``, with the numbers of victims."""
        return {**self.names, "benign": len(self.benign), "attacked": len(self.attacked), "auroc": self.auroc}


def inspected_victims(rows: Iterable[ResultRow], benign: str | None) -> list[InspectedVictims]:
    """Groups the inspected victims by dataset, model and defense.

    Args:
        rows: the rows of ``results.csv``.
        benign: name of the attack entry of the benign victims; None if the grid has none.
    """
    result = []
    judged = [row for row in rows if row["inspection_score"] is not None and not row["error"]]
    for group in grouped(judged, INSPECTION_COLUMNS[:3]):
        group.sort(key=lambda row: -row["inspection_score"])
        clean, attacked = ([row for row in group if (row["attack"] != benign) is side] for side in (False, True))
        clean_scores, attacked_scores = ([row["inspection_score"] for row in side] for side in (clean, attacked))
        area = float(auroc(clean_scores, attacked_scores)) if clean and attacked else None
        names = {name: group[0][name] for name in INSPECTION_COLUMNS[:3]}
        result.append(InspectedVictims(names, clean, attacked, area))
    return result
