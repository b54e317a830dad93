"""Random evaluated rows, and how each metric is made and updated with them."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torchmetrics import Metric

from lightning_backdoor.metrics import (
    AttackSuccessRate,
    CleanAccuracy,
    DetectionAUROC,
    FalseTriggerRate,
    FlagRate,
    Localisation,
    Overhead,
    PoisonedAccuracy,
    TargetRate,
)

TARGET = 1


class Evaluated(NamedTuple):
    """A row with its prediction, flag, score, highest-scoring token and times."""

    prediction: int  # -1: rejected
    label: int
    original_label: int
    poisoned: bool
    negative: bool
    flagged: bool
    score: float
    top: tuple[int, int] | None
    spans: list[tuple[int, int]]
    seconds: tuple[float, float]


def evaluated(count: int, seed: int = 0) -> list[Evaluated]:
    """Random rows of three classes; scores are tied, negative and large, seconds are sums of powers of two."""
    rng = random.Random(seed)
    made = []
    for _ in range(count):
        original = rng.randrange(3)
        poisoned = original != TARGET and rng.random() < 0.4
        start = rng.randrange(20)
        made.append(
            Evaluated(
                prediction=rng.choice([-1, 0, 1, 1, 2]),
                label=TARGET if poisoned else original,
                original_label=original,
                poisoned=poisoned,
                negative=not poisoned and rng.random() < 0.3,
                flagged=rng.random() < 0.5,
                score=rng.choice([-5e6, -2.0, 0.0, 0.1, 0.1 + 1e-8, 30.0, 30.000002, 1e9, rng.gauss(2 * poisoned, 3)]),
                top=rng.choice([None, (start, start + 2), (3, 5)]),
                spans=[(3, 5), (start, start + 2)][: rng.randrange(3)] if poisoned else [],
                seconds=(rng.randint(1, 99) / 64, rng.randint(1, 99) / 64),
            )
        )
    return made


def batch_of(rows: list[Evaluated]) -> Any:
    """The batch of rows, with the columns that metrics read."""
    return {
        "label": torch.tensor([row.label for row in rows], dtype=torch.long),
        "original_label": torch.tensor([row.original_label for row in rows], dtype=torch.long),
        "poisoned": torch.tensor([row.poisoned for row in rows], dtype=torch.bool),
        "negative": torch.tensor([row.negative for row in rows], dtype=torch.bool),
    }


def predictions(metric: Metric, rows: list[Evaluated]) -> None:
    metric.update(torch.tensor([row.prediction for row in rows], dtype=torch.long), batch_of(rows))


def flags(metric: Metric, rows: list[Evaluated]) -> None:
    metric.update(torch.tensor([row.flagged for row in rows], dtype=torch.bool), batch_of(rows))


def scores(metric: Metric, rows: list[Evaluated]) -> None:
    metric.update(torch.tensor([row.score for row in rows]), batch_of(rows)["poisoned"])


def tops(metric: Metric, rows: list[Evaluated]) -> None:
    poisoned = [row for row in rows if row.poisoned]
    metric.update([row.top for row in poisoned], [row.spans for row in poisoned])


def seconds(metric: Metric, rows: list[Evaluated]) -> None:
    metric.update(sum(row.seconds[0] for row in rows), sum(row.seconds[1] for row in rows))


Update = Callable[[Metric, list[Evaluated]], None]
#: per metric, how it is made and how it is updated with rows.
METRICS: dict[str, tuple[Callable[[], Metric], Update]] = {
    "cacc": (CleanAccuracy, predictions),
    "asr": (AttackSuccessRate, predictions),
    "pacc": (PoisonedAccuracy, predictions),
    "asr_floor": (lambda: TargetRate(TARGET), predictions),
    "ftr": (lambda: FalseTriggerRate(TARGET), predictions),
    "tpr": (lambda: FlagRate(poisoned=True), flags),
    "fpr": (lambda: FlagRate(poisoned=False), flags),
    "auroc": (DetectionAUROC, scores),
    "localisation": (Localisation, tops),
    "overhead": (Overhead, seconds),
}


def measured(name: str, batches: list[list[Evaluated]]) -> float:
    """The value of a metric over batches; in several processes, over the batches of all of them."""
    make, update = METRICS[name]
    metric = make()
    for batch in batches:
        update(metric, batch)
    return float(metric.compute())
