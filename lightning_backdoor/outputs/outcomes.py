"""The outcomes of a test, one line per row, from which all rates, curves and comparisons can be computed."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from lightning_backdoor.errors import InputError


class Outcome(NamedTuple):
    """The result of a test row: the victim's prediction, and the decisions of an inference-time defense.

    Labels and predictions are label names. Without a defense, ``defended_prediction``, ``flagged``, ``confirmed``,
    ``score`` and ``rejected`` are None.

    Attributes:
        index: the row's position in its source split, where rows that ``rating_cut`` leaves out are not counted; a
            clean row and the poisoned rows made from it, one for each target label, have the same index.
        poisoned: whether the row carries the trigger.
        label: the row's label before poisoning.
        target_label: the label that the attack wants for the row: in a poisoned row its target label, in a clean row
            that of the poisoned row made from it; None without an attack, and in clean rows from which an attack makes
            several poisoned rows, of several target labels.
        prediction: the victim's prediction.
        defended_prediction: the prediction after the defense; None if the defense rejected the text.
        flagged: whether the text's score was at or above the threshold.
        confirmed: whether the defense changed the prediction of a flagged text, or rejected the text.
        score: the text's score, higher is more suspicious.
        rejected: whether the defense rejected the text.
    """

    index: int  # type: ignore[assignment]  # hides the method tuple.index
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
        """The final prediction, after the defense if there is one; None if the defense rejected the text."""
        if self.rejected:
            return None
        return self.prediction if self.defended_prediction is None else self.defended_prediction


def write_outcomes(path: Path, outcomes: Iterable[Outcome]) -> None:
    """Writes outcomes as csv: first clean rows, then poisoned rows, each sorted by index and target label."""
    ordered = sorted(outcomes, key=lambda outcome: (outcome.poisoned, outcome.index, outcome.target_label or ""))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(Outcome._fields)
        writer.writerows([_cell(value) for value in outcome] for outcome in ordered)


def read_outcomes(path: Path) -> list[Outcome]:
    """Reads outcomes written by :func:`write_outcomes`.

    Raises:
        InputError: the file is not of that form.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            lines = csv.DictReader(file)
            if lacking := {*Outcome._fields} - {*(lines.fieldnames or ())}:
                raise KeyError(min(lacking))
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
                for row in _whole(lines)
            ]
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        problem = f"is not a table of outcomes ({type(error).__name__}: {error})"
        raise InputError(str(path), problem, "test the victim again, which writes it") from None


def _whole(lines: Iterable[dict[str, str]]) -> Iterator[dict[str, str]]:
    for row in lines:
        if None in row or None in row.values():
            raise ValueError("a line has not as many fields as there are columns")
        yield row


def _flag(value: str) -> bool | None:
    return value == "1" if value else None


def _cell(value: object) -> object:
    return int(value) if isinstance(value, bool) else repr(value) if isinstance(value, float) else value
