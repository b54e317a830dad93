"""Which defenses are the best against an attack, by the paired tests of ``comparisons.csv``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set

from lightning_backdoor.benchmark.comparisons import COMPARED
from lightning_backdoor.benchmark.metrics import METRICS
from lightning_backdoor.benchmark.statistics import SIGNIFICANT
from lightning_backdoor.benchmark.summaries import Summary
from lightning_backdoor.benchmark.table import ResultRow


def mark_best(lines: Sequence[Summary], comparisons: Sequence[ResultRow], working: Mapping[str, Set[str]]) -> None:
    """Marks the best defenses against one attack by each compared metric, in place.

    The best defense is the working one with the best mean, if it is better than every other defense by the paired
    test: p is below 0.05, and the interval of the difference does not contain 0. Being better than all needs no
    correction for the number of tests. Otherwise the working defenses that are not distinguishable from the one with
    the best mean are marked as tied with the best, unless these are all defenses. None is marked against an attack
    that does not count, or is not known to, with every seed.

    Args:
        lines: the lines of the attack.
        comparisons: the attack's rows of ``comparisons.csv`` over all seeds, or with the only seed.
        working: per compared metric, the defenses that do something about the attack.
    """
    if not any(line.counts for line in lines) or any(line.invalid for line in lines):
        return
    directions = {metric.name: metric.better for metric in METRICS}
    for metric, column in COMPARED.items():
        numbers = {line.names["defense"]: line.numbers for line in lines if line.is_defense and column in line.numbers}
        able = [defense for defense in numbers if defense in working[metric]]
        if not able or len(numbers) < 2:
            continue
        sign = 1 if directions[column] == "high" else -1
        leader = max(able, key=lambda defense: sign * numbers[defense][column].mean)
        worse = {
            row["second"] if row["first"] == leader else row["first"]
            for row in comparisons
            if row["metric"] == metric and leader in (row["first"], row["second"]) and _is_better(leader, row, sign)
        }
        alike = [defense for defense in able if defense not in worse]
        if worse >= numbers.keys() - {leader}:
            numbers[leader][column] = numbers[leader][column]._replace(best=True)
        elif 1 < len(alike) < len(numbers):
            for defense in alike:
                numbers[defense][column] = numbers[defense][column]._replace(tied=True)


def _is_better(defense: str, row: ResultRow, sign: int) -> bool:
    """Whether a defense is better than the other one of a comparison; ``sign`` is 1 if higher is better, else -1.

    The interval decides the direction, since over seeds a test by text and a mean may point in different ones.
    """
    sign = sign if row["first"] == defense else -sign
    in_favour = row["low"] > 0 if sign > 0 else row["high"] < 0
    return bool(in_favour and row["p"] < SIGNIFICANT)
