"""The cells of a grid that have no numbers, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from lightning_backdoor.benchmark.table import NAMES, ResultRow

#: why a cell has no numbers, in the order in which they are listed.
NOT_RUN, FAILED, VICTIM_FAILED, DAMAGED = "not run", "failed", "victim failed", "damaged"
REASONS = (FAILED, VICTIM_FAILED, DAMAGED, NOT_RUN)
#: how the error of a cell begins whose victim could not be trained.
VICTIM_ERROR = "victim: "


class MissingCell(NamedTuple):
    """A cell without numbers.

    Attributes:
        names: dataset, model, attack, defense and seed.
        reason: one of ``REASONS``.
        message: the error, or what is damaged; empty for a cell that has not run.
    """

    names: dict[str, str]
    reason: str
    message: str = ""

    @property
    def why(self) -> str:
        """The reason with the message."""
        return f"{self.reason}: {self.message}" if self.message else self.reason


def failed_cells(rows: Iterable[ResultRow]) -> list[MissingCell]:
    """The cells of some rows of ``results.csv`` that have failed."""
    result = []
    for row in rows:
        if error := row["error"]:
            names = {name: str(row[name]) for name in (*NAMES, "seed")}
            by_victim = error.startswith(VICTIM_ERROR)
            reason = VICTIM_FAILED if by_victim else FAILED
            result.append(MissingCell(names, reason, error.removeprefix(VICTIM_ERROR) if by_victim else error))
    return result


def missing_text(missing: Sequence[MissingCell]) -> str:
    """How many cells are missing for which reason.

    >>> missing_text([MissingCell({}, NOT_RUN), MissingCell({}, VICTIM_FAILED, "x"), MissingCell({}, NOT_RUN)])
    '1 victim failed, 2 not run'
    """
    counts = Counter(cell.reason for cell in missing)
    return ", ".join(f"{counts[reason]} {reason}" for reason in REASONS if counts[reason])
