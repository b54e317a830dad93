"""The rows of ``results.csv``, one per cell: their columns, and which attacks count as valid."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lightning_backdoor.benchmark.grid import CLEAN_TRAINING, UNDEFENDED, Cell
from lightning_backdoor.benchmark.intervals import difference_interval, text_intervals
from lightning_backdoor.benchmark.metrics import INTERVALS, METRIC_NAMES
from lightning_backdoor.benchmark.names import as_csv_field
from lightning_backdoor.benchmark.statistics import Interval
from lightning_backdoor.outputs.outcomes import Outcome
from lightning_backdoor.outputs.validity import excess_asr, failed_conditions

#: a row of ``results.csv`` by column; None means undefined.
ResultRow = dict[str, Any]

ATTACK_NAMES = ("dataset", "model", "attack")
NAMES = (*ATTACK_NAMES, "defense")
#: the columns that come from a cell's test.
NUMBERS = ("n_clean", "n_poisoned", *METRIC_NAMES, *INTERVALS)
COLUMNS = (*NAMES, "seed", *NUMBERS, "valid", "invalid_because", "cell", "victim", "training", "seconds", "error")
#: the columns that may differ between two runs of the same grid, on equal machines with equal numbers of threads.
TIMINGS = ("overhead", "seconds")


def measured(
    metrics: Mapping[str, float | None],
    outcomes: Sequence[Outcome],
    cleaning: Mapping[str, float | None] | None = None,
) -> ResultRow:
    """Computes the columns ``NUMBERS`` of a cell's row.

    Args:
        metrics: the logged metrics of the test (``test/cacc``, …); None, NaN and infinity mean undefined.
        outcomes: the outcome of each row of the test.
        cleaning: the fields of the :class:`lightning_backdoor.data.cleaning.CleaningRecord` of the victim's training
            rows, if a data defense cleaned them.
    """
    logged = {name.rpartition("/")[2]: value for name, value in metrics.items() if name.startswith("test/")}
    logged |= {f"cleaning_{name}": value for name, value in (cleaning or {}).items()}
    # without an inference-time defense the victim's prediction is final
    logged = {f"{name}_defended": logged.get(name) for name in ("cacc", "asr", "pacc")} | logged
    row: ResultRow = dict.fromkeys(INTERVALS) | {name: _known(logged.get(name)) for name in METRIC_NAMES}
    row["excess_asr"] = _excess(row["asr"], row["asr_floor"])
    localisation_texts = _known(logged.get("localisation_texts"))
    for name, interval in text_intervals(outcomes, row["localisation"], localisation_texts).items():
        if row[name] is not None:
            row |= {f"{name}_low": _known(interval.low), f"{name}_high": _known(interval.high)}
    n_poisoned = sum(outcome.poisoned for outcome in outcomes)
    return {**row, "n_clean": len(outcomes) - n_poisoned, "n_poisoned": n_poisoned}


def mark_valid(rows: Iterable[ResultRow], benign: str | None) -> None:
    """Sets ``excess_asr``, ``valid`` and ``invalid_because`` of each row, in place.

    ``excess_asr`` is that of the cell's own victim, over its own floor and over the ASR of clean training on the same
    rows (the attack's control), as far as these are known; None if neither is known. ``valid`` is ``yes`` if the attack
    counts by :func:`lightning_backdoor.outputs.validity.failed_conditions`, ``no`` if not, and empty where there is no
    attack, or no cell of the undefended victim to judge it by. ``invalid_because`` has the failed conditions, joined
    by a semicolon.

    Args:
        rows: all rows of one grid.
        benign: name of the attack entry of the benign victims; None if the grid has none.
    """
    rows = list(rows)
    by_names = {key_of(row): row for row in rows}
    for group in grouped(rows, (*ATTACK_NAMES, "seed")):
        dataset, model, attack, seed = key_of(group[0], (*ATTACK_NAMES, "seed"))
        control = by_names.get((dataset, model, attack, CLEAN_TRAINING, seed), {})
        benign_row = by_names.get((dataset, model, benign, UNDEFENDED, seed), {})
        clean_asr = control.get("asr")
        clean = (clean_asr, control.get("cacc") if control.get("cacc") is not None else benign_row.get("cacc"))
        for row in group:
            row["excess_asr"] = _excess(row["asr"], row["asr_floor"], None if row is control else clean_asr)
            row |= _excess_interval(row, None if row is control else control)
        judged = next((row for row in group if has_undefended_victim(row) and row["asr"] is not None), None)
        failed, valid = [], ""
        if judged is not None and attack != benign:
            failed = failed_conditions(judged["asr"], judged["asr_floor"], judged["cacc"], clean)
            valid = "no" if failed else "yes"
        for row in group:
            row |= {"valid": valid, "invalid_because": "; ".join(failed)}


def invalid_because(cell: Cell, row: Mapping[str, Any]) -> list[str]:
    """The conditions that a cell's attack fails by the cell's own row; empty if its victim is not the undefended one.

    Args:
        cell: the cell.
        row: its numbers, as :func:`measured` returns them.
    """
    asr = row.get("asr")
    if asr is None or cell.defense == CLEAN_TRAINING or cell.victim.training:
        return []
    return failed_conditions(asr, row.get("asr_floor"))


def _excess_interval(row: ResultRow, control: ResultRow | None) -> ResultRow:
    """The ends of the interval of a row's excess ASR; None where the ASR or the floor has no interval."""
    own, clean = (row["asr_floor"], "asr_floor", row), ((control or {}).get("asr"), "asr", control or {})
    floor, name, source = max((own, clean), key=lambda known: -1 if known[0] is None else known[0])
    ends: list[Any] = [
        of.get(f"{column}_{end}") for of, column in ((row, "asr"), (source, name)) for end in ("low", "high")
    ]
    if row["excess_asr"] is None or None in ends:
        return {"excess_asr_low": None, "excess_asr_high": None}
    asr, of_floor = (Interval(float(low), float(high)) for low, high in (ends[:2], ends[2:]))
    interval = difference_interval(row["excess_asr"], (row["asr"], asr), (floor, of_floor))
    return {"excess_asr_low": interval.low, "excess_asr_high": interval.high}


def has_undefended_victim(row: ResultRow) -> bool:
    """Whether a cell's victim was trained under the attack and without a defense.

    Without ``training``, the name of the defense that the victim was trained under, only a cell without any defense is
    known to be one.
    """
    if row["defense"] == CLEAN_TRAINING:
        return False
    return row["defense"] == UNDEFENDED or row.get("training") == ""


def key_of(row: Mapping[str, Any], columns: Iterable[str] = (*NAMES, "seed")) -> tuple[Any, ...]:
    """The values of a row in some columns; by default those that tell the cells of a grid apart.

    >>> key_of({"attack": "badnets", "seed": 0, "asr": 1.0}, ["attack", "seed"])
    ('badnets', 0)
    """
    return tuple(row[column] for column in columns)


def grouped(rows: Iterable[ResultRow], names: Iterable[str]) -> list[list[ResultRow]]:
    """Groups rows that have the same values in some columns; groups and rows keep their order.

    >>> grouped([{"a": 1, "b": 1}, {"a": 2, "b": 2}, {"a": 1, "b": 3}], ["a"])
    [[{'a': 1, 'b': 1}, {'a': 1, 'b': 3}], [{'a': 2, 'b': 2}]]
    """
    columns, groups = tuple(names), dict[tuple[Any, ...], list[ResultRow]]()
    for row in rows:
        groups.setdefault(key_of(row, columns), []).append(row)
    return [*groups.values()]


def csv_text(rows: Iterable[ResultRow], columns: Sequence[str]) -> str:
    """Rows as CSV text: numbers with all digits, undefined values empty, no text a formula of a spreadsheet.

    :func:`lightning_backdoor.benchmark.names.of_csv_field` gives a text back that had to be changed.
    """
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: as_csv_field(value) if isinstance(value, str) else value for k, value in row.items()})
    return text.getvalue()


def _excess(asr: float | None, *floors: float | None) -> float | None:
    """The excess ASR; None without an ASR or without any floor."""
    return None if asr is None or not any(floor is not None for floor in floors) else excess_asr(asr, *floors)


def _known(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else value
