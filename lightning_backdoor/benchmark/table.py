"""The table of a grid: one row a cell, and their summary over seeds."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

from lightning_backdoor.benchmark.grid import CLEAN_TRAINING, UNDEFENDED
from lightning_backdoor.benchmark.statistics import auroc_interval, compare, share_interval
from lightning_backdoor.outputs.outcomes import Outcome, read_outcomes

Row = dict[str, Any]

NAMES = ("dataset", "model", "attack", "defense")
#: logged by tests; README.md says what each means.
METRICS = (
    *("cacc", "asr", "pacc", "asr_floor", "cacc_defended", "asr_defended", "pacc_defended"),
    *("auroc", "auroc_target", "tpr", "fpr", "localisation", "overhead"),
)
#: those that have an interval over texts, in columns ``..._low`` and ``..._high``.
WITH_INTERVAL = ("cacc_defended", "asr_defended", "auroc")
INTERVALS = tuple(f"{name}_{end}" for name in WITH_INTERVAL for end in ("low", "high"))
COLUMNS = (*NAMES, "seed", "n_clean", "n_poisoned", *METRICS, *INTERVALS, "valid", "cell", "victim", "seconds", "error")
#: what differs between two runs of the same grid.
TIMINGS = ("overhead", "seconds")
#: an attack counts whose undefended ASR is at least this, at a CACC at most so much below clean training.
VALID_ASR, VALID_LOSS = 0.9, 0.03


def measured(
    metrics: Mapping[str, float | None],
    outcomes: Sequence[Outcome],
    cleaning: Mapping[str, float | None] | None = None,
) -> Row:
    """The numbers of a cell, as its row has them.

    Args:
        metrics: logged by its test (``test/cacc``, ...); None and nan are what is undefined.
        outcomes: of all rows of the test.
    """
    found = {name.rpartition("/")[2]: value for name, value in metrics.items() if name.startswith("test/")}
    row: Row = {name: _known(found.get(name)) for name in METRICS}
    for name in ("cacc", "asr", "pacc"):  # where nothing is done to a text, what is done changes nothing
        if f"{name}_defended" not in found:
            row[f"{name}_defended"] = row[name]
    clean = [outcome for outcome in outcomes if not outcome.poisoned]
    poisoned = [outcome for outcome in outcomes if outcome.poisoned]
    row |= {"n_clean": len(clean), "n_poisoned": len(poisoned)}
    of_clean, of_poisoned = ([o.score for o in kind if o.score is not None] for kind in (clean, poisoned))
    intervals = {
        "cacc_defended": share_interval(sum(map(correct, clean)), len(clean)),
        "asr_defended": share_interval(sum(map(success, poisoned)), len(poisoned)),
        "auroc": auroc_interval(of_clean, of_poisoned),
    }
    for name, interval in intervals.items():
        row |= {f"{name}_low": _known(interval.low), f"{name}_high": _known(interval.high)}
    return row


def correct(outcome: Outcome) -> bool:
    """Whether a row is read rightly, after the defense."""
    return outcome.outcome == outcome.label


def success(outcome: Outcome) -> bool:
    """Whether a row is read as the attacker wants, after the defense."""
    return outcome.outcome == outcome.target_label


def mark_valid(rows: Iterable[Row], benign: str | None) -> None:
    """Sets ``valid`` of each row in place: ``yes`` or ``no``, empty without an attack or what to compare with.

    It is the undefended attack that counts: its row without a defense has to reach the bars, and where there is none,
    the row's own undefended numbers. Clean training is the attack's control, or the benign victim without a defense.

    Args:
        rows: of one grid.
        benign: the name of the attack that is none; None where the grid has none.
    """
    rows = list(rows)
    by_place = {tuple(row[name] for name in (*NAMES, "seed")): row for row in rows}
    for row in rows:
        row["valid"] = ""
        dataset, model, attack, seed = (row[name] for name in ("dataset", "model", "attack", "seed"))
        undefended = by_place.get((dataset, model, attack, UNDEFENDED, seed), row)
        control = by_place.get((dataset, model, attack, CLEAN_TRAINING, seed))
        clean = control or by_place.get((dataset, model, benign, UNDEFENDED, seed))
        if clean is None or attack == benign:
            continue
        asr, cacc, of_clean = undefended["asr"], undefended["cacc"], clean["cacc"]
        if asr is not None and cacc is not None and of_clean is not None:
            row["valid"] = "yes" if asr >= VALID_ASR and cacc >= of_clean - VALID_LOSS else "no"


class Summary(NamedTuple):
    """A row over its seeds.

    Attributes:
        names: dataset, model, attack and defense.
        seeds: of the rows that have numbers.
        means: by metric, None where it is undefined.
        spreads: standard deviations over seeds, None for one seed.
        intervals: by metric, over texts, where there is one seed; else empty.
        valid: how many seeds are, and of how many that is known.
        errors: of the seeds that failed.
    """

    names: dict[str, str]
    seeds: list[int]
    means: dict[str, float | None]
    spreads: dict[str, float | None]
    intervals: dict[str, tuple[float, float]]
    valid: tuple[int, int]
    errors: list[str]


def over_seeds(rows: Iterable[Row]) -> list[Summary]:
    """Mean and spread of the rows that differ by seed alone, in the order in which they come first."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in NAMES), []).append(row)
    return [_summary(dict(zip(NAMES, names, strict=True)), group) for names, group in groups.items()]


def _summary(names: dict[str, str], rows: list[Row]) -> Summary:
    done = [row for row in rows if not row["error"]]
    means: dict[str, float | None] = {}
    spreads: dict[str, float | None] = {}
    for name in METRICS:
        values = [row[name] for row in done if row[name] is not None]
        means[name] = statistics.mean(values) if values else None
        spreads[name] = statistics.stdev(values) if len(values) > 1 else None
    intervals = {}
    for name in WITH_INTERVAL if len(done) == 1 else ():
        low, high = done[0][f"{name}_low"], done[0][f"{name}_high"]
        if low is not None and high is not None:
            intervals[name] = (low, high)
    known = [row["valid"] for row in done if row["valid"]]
    errors = [row["error"] for row in rows if row["error"]]
    seeds = [int(row["seed"]) for row in done]
    return Summary(names, seeds, means, spreads, intervals, (known.count("yes"), len(known)), errors)


#: a line of ``comparisons.csv``: where, the two defenses, the metric, texts, difference, its interval and p.
COMPARED = (
    "dataset",
    "model",
    "attack",
    "seed",
    "first",
    "second",
    "metric",
    "texts",
    "difference",
    "low",
    "high",
    "p",
)


def comparisons(rows: Iterable[Row], cells: Path) -> list[Row]:
    """Every two cells of one dataset, model, attack and seed on the same texts: ASR, then CACC, after the defense.

    Args:
        rows: of the table.
        cells: the folder of the cells' folders.
    """
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        if not row["error"]:
            groups.setdefault(tuple(row[name] for name in ("dataset", "model", "attack", "seed")), []).append(row)
    result = []
    for place, group in groups.items():
        outcomes = {row["defense"]: read_outcomes(cells / row["cell"] / "outcomes.csv") for row in group}
        for first, second in combinations(outcomes, 2):
            for metric, hit, poisoned in (("asr", success, True), ("cacc", correct, False)):
                one, other = (
                    {outcome.index: hit(outcome) for outcome in outcomes[name] if outcome.poisoned == poisoned}
                    for name in (first, second)
                )
                shared = sorted(one.keys() & other.keys())
                if shared:
                    found = compare([one[index] for index in shared], [other[index] for index in shared])
                    values = (found.texts, found.difference, *found.interval, found.p)
                    result.append(dict(zip(COMPARED, (*place, first, second, metric, *values), strict=True)))
    return result


def csv_text(rows: Iterable[Row], columns: Sequence[str]) -> str:
    """Rows as csv; numbers to the last digit, what is undefined empty."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(["" if row[name] is None else row[name] for name in columns] for row in rows)
    return text.getvalue()


def _known(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else value
