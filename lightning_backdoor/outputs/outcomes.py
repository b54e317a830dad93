"""What became of each row of a test: one line a row, from which shares, curves and comparisons are taken again."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple


class Outcome(NamedTuple):
    """One row; labels by name.

    Attributes:
        index: the row's place in its source split; a clean row and its poisoned copy have the same.
        poisoned: whether it carries the trigger.
        label: before poisoning.
        target_label: of the attack, None where there is none.
        prediction: of the victim.
        defended_prediction: after an inference-time defense, None where it refused; None without one, and so are the
            others.
        flagged: whether the score was at or above the threshold.
        confirmed: whether the repair changed the prediction, or the text was rejected.
        score: of the text, higher is more suspicious.
        rejected: whether the defense refused the text.
    """

    index: int  # type: ignore[assignment]  # tuples have a method of this name, which nobody calls
    poisoned: bool
    label: str
    target_label: str | None
    prediction: str
    defended_prediction: str | None = None
    flagged: bool | None = None
    confirmed: bool | None = None
    score: float | None = None
    rejected: bool | None = None

    @property
    def outcome(self) -> str | None:
        """What is left to act on: the prediction after the defense, where there is one; None where it refused."""
        if self.rejected:
            return None
        return self.prediction if self.defended_prediction is None else self.defended_prediction


def write_outcomes(path: Path, outcomes: Iterable[Outcome]) -> None:
    """Writes them as csv, poisoned rows after clean ones and in the order of their index."""
    ordered = sorted(outcomes, key=lambda outcome: (outcome.poisoned, outcome.index))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(Outcome._fields)
        writer.writerows([_written(value) for value in outcome] for outcome in ordered)


def read_outcomes(path: Path) -> list[Outcome]:
    """Reads what :func:`write_outcomes` wrote."""
    with path.open(encoding="utf-8", newline="") as file:
        return [
            Outcome(
                int(row["index"]),
                row["poisoned"] == "1",
                row["label"],
                row["target_label"] or None,
                row["prediction"],
                row["defended_prediction"] or None,
                _flag(row["flagged"]),
                _flag(row["confirmed"]),
                float(row["score"]) if row["score"] else None,
                _flag(row["rejected"]),
            )
            for row in csv.DictReader(file)
        ]


def _flag(value: str) -> bool | None:
    return value == "1" if value else None


def _written(value: object) -> object:
    return int(value) if isinstance(value, bool) else repr(value) if isinstance(value, float) else value
