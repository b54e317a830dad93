"""The table over seeds: one line per dataset, model, attack and defense, and which defense is best."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from lightning_backdoor.benchmark.grid import CLEAN_TRAINING, UNDEFENDED
from lightning_backdoor.benchmark.metrics import COUNTS, METRICS, PARTS, WITH_INTERVAL, Column
from lightning_backdoor.benchmark.table import ATTACK_NAMES, NAMES, ResultRow, grouped


class Number(NamedTuple):
    """A metric over seeds.

    Attributes:
        mean: mean over the seeds that have the metric.
        spread: standard deviation over seeds; None for one seed.
        interval: interval over texts, if the metric has one and there is only one seed; else None.
        text: the mean as shown.
        best: whether the defense is the best against the attack by this metric.
    """

    mean: float
    spread: float | None
    interval: tuple[float, float] | None
    text: str
    best: bool = False

    @property
    def around(self) -> str:
        """The interval or the spread as shown; empty if there is neither."""
        if self.interval:
            return "{:.2f}–{:.2f}".format(*self.interval)
        return "" if self.spread is None else f"±{self.spread:.3f}"


class Summary(NamedTuple):
    """A line of the table.

    Attributes:
        names: dataset, model, attack and defense.
        seeds: the seeds that have numbers.
        numbers: number per metric name; a metric that is undefined for all seeds is missing.
        valid: number of seeds with a valid attack, and number of seeds for which that is known.
        errors: messages of the seeds that failed.
    """

    names: dict[str, str]
    seeds: list[int]
    numbers: dict[str, Number]
    valid: tuple[int, int]
    errors: list[str]

    @property
    def is_defense(self) -> bool:
        """Whether the line is neither the undefended victim, nor the control, nor an inspection."""
        return self.names["defense"] not in (UNDEFENDED, CLEAN_TRAINING) and "inspection_score" not in self.numbers

    @property
    def failed(self) -> bool:
        """Whether no seed has numbers."""
        return not self.seeds

    @property
    def invalid(self) -> str:
        """``not valid``, with the number of seeds where only some are not; empty where all are valid."""
        valid, known = self.valid
        return "" if valid == known else f"{known - valid} of {known} not valid" if valid else "not valid"


def over_seeds(rows: Iterable[ResultRow]) -> list[Summary]:
    """Groups rows that differ only in the seed, in the order in which the groups first occur.

    For each metric with a direction, the best defense against an attack is marked, compared in the shown digits; no
    defense is marked if all are equal. The undefended victim, the control and inspections, which do not change the
    victim's predictions, are excluded.
    """
    result = []
    for attack_rows in grouped(rows, ATTACK_NAMES):
        summaries = [_summary(group) for group in grouped(attack_rows, NAMES)]
        defenses = [summary for summary in summaries if summary.is_defense]
        for metric in METRICS:
            if metric.better:
                _mark_best(metric, [summary.numbers for summary in defenses if metric.name in summary.numbers])
        result += summaries
    return result


def shown_metrics(summaries: Sequence[Summary]) -> list[Column]:
    """The metrics to show in a table of these lines: the metrics that any line has, by part."""
    with_numbers = {name for summary in summaries for name in summary.numbers}
    return [metric for part in PARTS for metric in METRICS if metric.part == part and metric.name in with_numbers]


def _summary(rows: Sequence[ResultRow]) -> Summary:
    done = [row for row in rows if not row["error"]]
    numbers = {}
    for name in (metric.name for metric in METRICS):
        if values := [row[name] for row in done if row[name] is not None]:
            mean, spread = statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None
            interval = None
            if len(done) == 1 and name in WITH_INTERVAL and done[0][f"{name}_low"] is not None:
                interval = (done[0][f"{name}_low"], done[0][f"{name}_high"])
            numbers[name] = Number(mean, spread, interval, f"{mean:.0f}" if name in COUNTS else f"{mean:.3f}")
    known = [row["valid"] for row in done if row["valid"]]
    return Summary(
        names={name: rows[0][name] for name in NAMES},
        seeds=[int(row["seed"]) for row in done],
        numbers=numbers,
        valid=(known.count("yes"), len(known)),
        errors=[row["error"] for row in rows if row["error"]],
    )


def _mark_best(metric: Column, defenses: Sequence[dict[str, Number]]) -> None:
    shown = [float(numbers[metric.name].text) for numbers in defenses]
    if len(set(shown)) > 1:
        best = max(shown) if metric.better == "high" else min(shown)
        for numbers, value in zip(defenses, shown, strict=True):
            numbers[metric.name] = numbers[metric.name]._replace(best=value == best)
