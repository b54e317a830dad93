"""Results over seeds, as lines of the table with the best defenses, and the AUROC of inspections over victims."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from lightning_backdoor.benchmark.grid import CLEAN_TRAINING, UNDEFENDED
from lightning_backdoor.benchmark.metrics import COUNTS, METRICS, PARTS, Column
from lightning_backdoor.benchmark.statistics import auroc
from lightning_backdoor.benchmark.table import ATTACK_NAMES, NAMES, ResultRow, grouped

INSPECTION_NAMES = ("dataset", "model", "defense")


class Number(NamedTuple):
    """A metric over seeds.

    Attributes:
        mean: mean over the seeds that have the metric.
        spread: standard deviation over seeds; None for one seed.
        interval: interval over texts, if the metric has one and only one seed has the metric; else None.
        text: the mean as shown.
        best: whether the defense is better against the attack than every other by this metric's paired test; see
            :func:`lightning_backdoor.benchmark.ranking.mark_best`.
        tied: whether the defense is not distinguishable from the best one, while others are.
    """

    mean: float
    spread: float | None
    interval: tuple[float, float] | None
    text: str
    best: bool = False
    tied: bool = False

    @property
    def around(self) -> str:
        """The interval or the spread as shown; empty if there is neither."""
        if self.interval:
            return range_text(self.interval, 2)
        return "" if self.spread is None else f"±{self.spread:.3f}"


def range_text(interval: tuple[float, float], decimals: int) -> str:
    """An interval as shown.

    >>> range_text((0.25, 0.5), 2), range_text((-0.25, 0.5), 2)
    ('0.25–0.50', '-0.25 to 0.50')
    """
    between = " to " if interval[0] < 0 else "–"
    return between.join(f"{end:.{decimals}f}" for end in interval)


class Summary(NamedTuple):
    """A line of the table.

    Attributes:
        names: dataset, model, attack and defense.
        seeds: the seeds that have numbers.
        numbers: number per metric name; a metric that is undefined for all seeds is missing.
        valid: number of seeds with a valid attack, and number of seeds for which that is known.
        failed_conditions: why the attack is not valid, per seed for which it is not; the seed is named if there are
            several.
        errors: messages of the seeds that failed.
        is_defense: False for the undefended victim, the control, and inspections of the undefended victim.
    """

    names: dict[str, str]
    seeds: list[int]
    numbers: dict[str, Number]
    valid: tuple[int, int]
    failed_conditions: list[str]
    errors: list[str]
    is_defense: bool

    @property
    def failed(self) -> bool:
        """Whether no seed has numbers."""
        return not self.seeds

    @property
    def counts(self) -> bool:
        """Whether the attack is known to be valid, with every seed for which that is known."""
        valid, known = self.valid
        return 0 < valid == known

    @property
    def invalid(self) -> str:
        """``not valid``, with the number of such seeds if other seeds are valid; empty if all known seeds are valid."""
        valid, known = self.valid
        return "" if valid == known else f"{known - valid} of {known} not valid" if valid else "not valid"


def over_seeds(rows: Iterable[ResultRow]) -> list[Summary]:
    """Groups rows that differ only in the seed, in the order in which the groups first occur; marks no best."""
    result = []
    for attack_rows in grouped(rows, ATTACK_NAMES):
        undefended = {row["victim"] for row in attack_rows if row["defense"] == UNDEFENDED}
        result += [_summary(group, undefended) for group in grouped(attack_rows, NAMES)]
    return result


def shown_metrics(summaries: Sequence[Summary]) -> list[Column]:
    """The metrics to show in a table of these lines: the metrics that any line has, by part."""
    with_numbers = {name for summary in summaries for name in summary.numbers}
    return [metric for part in PARTS for metric in METRICS if metric.part == part and metric.name in with_numbers]


class InspectedVictims(NamedTuple):
    """The victims of one dataset and model that one inspection has judged.

    Attributes:
        names: dataset, model and defense; the defense is the inspection.
        benign: rows of the benign victims, highest score first.
        attacked: rows of the victims under an attack, highest score first.
        auroc: probability that an attacked victim scores above a benign one, ties counting half, over attacks and
            seeds; None (undefined) if there are no benign or no attacked victims.
        words: by the name of a cell, the words that stand out among the texts that its inspection flagged, if any do.
    """

    names: dict[str, str]
    benign: list[ResultRow]
    attacked: list[ResultRow]
    auroc: float | None
    words: Mapping[str, str]

    def as_row(self) -> ResultRow:
        """The row of the inspections' table: names, numbers of victims, and AUROC."""
        return {**self.names, "benign": len(self.benign), "attacked": len(self.attacked), "auroc": self.auroc}


def inspected_victims(
    rows: Iterable[ResultRow], benign: str | None, words: Mapping[str, str] = MappingProxyType({})
) -> list[InspectedVictims]:
    """Groups the inspected victims by dataset, model and defense.

    Args:
        rows: the rows of ``results.csv``.
        benign: name of the attack entry of the benign victims; None if the grid has none.
        words: by the name of a cell, the words that stand out among the texts that its inspection flagged.
    """
    result = []
    judged = [row for row in rows if row["inspection_score"] is not None and not row["error"]]
    for group in grouped(judged, INSPECTION_NAMES):
        group.sort(key=lambda row: -row["inspection_score"])
        clean, attacked = ([row for row in group if (row["attack"] != benign) is side] for side in (False, True))
        clean_scores, attacked_scores = ([row["inspection_score"] for row in side] for side in (clean, attacked))
        area = float(auroc(clean_scores, attacked_scores)) if clean and attacked else None
        names = {name: group[0][name] for name in INSPECTION_NAMES}
        of_group = {row["cell"]: words[row["cell"]] for row in group if words.get(row["cell"])}
        result.append(InspectedVictims(names, clean, attacked, area, of_group))
    return result


def _summary(rows: Sequence[ResultRow], undefended: Collection[str]) -> Summary:
    """The line of some rows that differ only in the seed.

    Args:
        rows: the rows.
        undefended: ids of the attack's undefended victims; if there are none, all victims count as undefended.
    """
    done = [row for row in rows if not row["error"]]
    numbers = {}
    for name in (metric.name for metric in METRICS):
        if values := [row[name] for row in done if row[name] is not None]:
            mean, spread = statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None
            first = next(row for row in done if row[name] is not None)
            ends: tuple[Any, Any] = (first.get(f"{name}_low"), first.get(f"{name}_high"))
            interval = ends if len(values) == 1 and None not in ends else None
            numbers[name] = Number(mean, spread, interval, f"{mean:.0f}" if name in COUNTS else f"{mean:.3f}")
    known = [row["valid"] for row in done if row["valid"]]
    reasons = {row["seed"]: row["invalid_because"] for row in done if row.get("invalid_because")}
    several = len(rows) > 1
    names = {name: rows[0][name] for name in NAMES}
    unchanged = not undefended or {row["victim"] for row in rows} <= {*undefended}
    only_inspected = "inspection_score" in numbers and "fpr" not in numbers and unchanged
    return Summary(
        names=names,
        seeds=[int(row["seed"]) for row in done],
        numbers=numbers,
        valid=(known.count("yes"), len(known)),
        failed_conditions=[f"seed {seed}: {why}" if several else why for seed, why in reasons.items()],
        errors=[row["error"] for row in rows if row["error"]],
        is_defense=names["defense"] not in (UNDEFENDED, CLEAN_TRAINING) and not only_inspected,
    )
