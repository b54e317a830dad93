"""What the table shows a reader: the columns, the numbers with what is uncertain about them, and the best of each."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from lightning_backdoor.benchmark.grid import CLEAN_TRAINING, UNDEFENDED
from lightning_backdoor.benchmark.table import Row, Summary, over_seeds


class Column(NamedTuple):
    """A metric as a heading.

    Attributes:
        metric: as ``results.csv`` names it.
        part: of the table: ``undefended``, ``defended``, ``detection`` or ``cost``.
        head: short name; unique within its part.
        meaning: in one sentence.
        best: ``low`` or ``high``; empty where no defense has a share in it.
    """

    metric: str
    part: str
    head: str
    meaning: str
    best: str = ""


SHOWN = (
    Column("cacc", "undefended", "CACC", "Accuracy on clean texts."),
    Column("asr", "undefended", "ASR", "Share of poisoned texts that are read as the attacker wants."),
    Column("pacc", "undefended", "PACC", "Share of poisoned texts that are read rightly all the same."),
    Column(
        *("asr_floor", "undefended", "Floor"),
        "Share of clean texts of other labels that are read as the target: about what an ASR can fall to.",
    ),
    Column("cacc_defended", "defended", "CACC", "Accuracy on clean texts; a rejected text counts as wrong.", "high"),
    Column("asr_defended", "defended", "ASR", "Share of poisoned texts that still reach the target.", "low"),
    Column("pacc_defended", "defended", "PACC", "Share of poisoned texts that are read rightly again.", "high"),
    Column(
        *("auroc", "detection", "AUROC"),
        "How probably a poisoned text scores above a clean one: 1 tells all apart, 0.5 is chance.",
        "high",
    ),
    Column("tpr", "detection", "TPR", "Share of poisoned texts that are flagged.", "high"),
    Column("fpr", "detection", "FPR", "Share of clean texts that are flagged.", "low"),
    Column(
        *("localisation", "detection", "Located"),
        "Share of poisoned texts whose highest-scoring token lies in the trigger.",
        "high",
    ),
    Column("overhead", "cost", "Time", "Time through the defense over time through the victim alone.", "low"),
)
#: what the parts of the table are called.
PARTS = {"undefended": "Undefended", "defended": "After the defense", "detection": "Detection", "cost": "Cost"}


class Entry(NamedTuple):
    """A number of the table; ``around`` is its spread over seeds, or its interval over texts, or nothing."""

    value: float
    text: str
    around: str
    best: bool


class Line(NamedTuple):
    """A line of the table, its entries in the order of ``SHOWN``; None is undefined."""

    summary: Summary
    entries: list[Entry | None]

    @property
    def failed(self) -> bool:
        """Whether no seed has numbers."""
        return not self.summary.seeds

    @property
    def invalid(self) -> str:
        """Where the attack is none that counts: ``not valid``, or for how many seeds; else nothing."""
        valid, known = self.summary.valid
        return "" if valid == known else f"{known - valid} of {known} not valid" if valid else "not valid"


def lines(rows: Iterable[Row]) -> list[Line]:
    """The table over seeds.

    The best is that of the defenses on one dataset, model and attack, as far as the digits that are shown tell, unless
    all are alike; the undefended victim and the control are no defenses.
    """
    summaries = over_seeds(rows)
    values: dict[tuple[str, ...], list[float]] = {}
    for summary in summaries:
        for column in SHOWN if _is_defense(summary) else ():
            if (mean := summary.means[column.metric]) is not None:
                values.setdefault((*_place(summary), column.metric), []).append(round(mean, 3))
    best = {
        (*place, column.metric): (min if column.best == "low" else max)(found)
        for column in SHOWN
        for (*place, metric), found in values.items()
        if column.best and metric == column.metric and len(set(found)) > 1
    }
    return [Line(summary, [_entry(summary, column, best) for column in SHOWN]) for summary in summaries]


def _entry(summary: Summary, column: Column, best: dict[tuple[str, ...], float]) -> Entry | None:
    mean, spread = summary.means[column.metric], summary.spreads[column.metric]
    if mean is None:
        return None
    around = "" if spread is None else f"±{spread:.3f}"
    if interval := summary.intervals.get(column.metric):
        around = "{:.2f}–{:.2f}".format(*interval)
    is_best = _is_defense(summary) and best.get((*_place(summary), column.metric)) == round(mean, 3)
    return Entry(mean, f"{mean:.3f}", around, is_best)


def _place(summary: Summary) -> tuple[str, str, str]:
    return summary.names["dataset"], summary.names["model"], summary.names["attack"]


def _is_defense(summary: Summary) -> bool:
    return summary.names["defense"] not in (UNDEFENDED, CLEAN_TRAINING)
