"""Each metric against its definition, written out row by row."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from lightning_backdoor.metrics import AttackSuccessRate, CleanAccuracy, DetectionAUROC, Localisation, Overhead
from tests.metrics.evaluated import METRICS, TARGET, Evaluated, evaluated, measured

ROWS = evaluated(500)


def share(hits: list[bool]) -> float:
    return sum(hits) / len(hits)


def inside(row: Evaluated) -> bool:
    """Whether the highest-scoring token and the trigger have a character in common."""
    return row.top is not None and any(set(range(*row.top)) & set(range(*span)) for span in row.spans)


def auroc(rows: list[Evaluated]) -> float:
    """Over all pairs of a poisoned and a clean row: 1 where the poisoned one scores higher, 1/2 where they tie."""
    scores = [float(torch.tensor(row.score)) for row in rows]  # rounded to float32
    pairs = [
        (scores[i], scores[j])
        for i, poisoned in enumerate(rows)
        if poisoned.poisoned
        for j, clean in enumerate(rows)
        if not clean.poisoned
    ]
    return sum(1.0 if high > low else 0.5 if high == low else 0.0 for high, low in pairs) / len(pairs)


def clean(rows: list[Evaluated]) -> list[Evaluated]:
    """The rows with no part of a trigger."""
    return [row for row in rows if not row.poisoned and not row.negative]


DEFINITIONS: dict[str, Callable[[list[Evaluated]], float]] = {
    "cacc": lambda rows: share([row.prediction == row.original_label for row in clean(rows)]),
    "asr": lambda rows: share([row.prediction == TARGET for row in rows if row.poisoned]),
    "pacc": lambda rows: share([row.prediction == row.original_label for row in rows if row.poisoned]),
    "asr_floor": lambda rows: share([row.prediction == TARGET for row in clean(rows) if row.original_label != TARGET]),
    "ftr": lambda rows: share(
        [row.prediction == TARGET for row in rows if row.negative and row.original_label != TARGET]
    ),
    "tpr": lambda rows: share([row.flagged for row in rows if row.poisoned]),
    "fpr": lambda rows: share([row.flagged for row in clean(rows)]),
    "auroc": auroc,
    "localisation": lambda rows: share([inside(row) for row in rows if row.poisoned and row.spans]),
    "overhead": lambda rows: sum(row.seconds[0] for row in rows) / sum(row.seconds[1] for row in rows),
}


def test_every_metric_is_defined_here() -> None:
    assert DEFINITIONS.keys() == METRICS.keys()


@pytest.mark.parametrize("size", [1, 32, 500])
@pytest.mark.parametrize("name", METRICS)
def test_a_metric_equals_its_definition_for_any_size_of_batches(name: str, size: int) -> None:
    batches = [ROWS[i : i + size] for i in range(0, len(ROWS), size)]
    expected = DEFINITIONS[name](ROWS)
    assert expected > 0
    assert measured(name, batches) == pytest.approx(expected, rel=1e-6)


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
@pytest.mark.parametrize("name", METRICS)
def test_without_rows_a_metric_is_nan(name: str) -> None:
    assert math.isnan(measured(name, []))
    assert math.isnan(measured(name, [[]]))


@pytest.mark.parametrize(
    ("name", "poisoned"),
    [
        *[("cacc", True), ("asr_floor", True), ("fpr", True), ("ftr", True)],
        *[("asr", False), ("pacc", False), ("tpr", False), ("localisation", False)],
        *[("auroc", True), ("auroc", False)],
    ],
)
def test_a_metric_without_rows_of_its_kind_is_nan(name: str, poisoned: bool) -> None:
    assert math.isnan(measured(name, [[row for row in ROWS if row.poisoned == poisoned]]))


@pytest.mark.parametrize("name", ["cacc", "asr", "pacc", "asr_floor", "tpr", "fpr"])
def test_negatives_count_in_no_rate_but_their_own(name: str) -> None:
    rest = [row for row in ROWS if not row.negative]
    assert len(rest) < len(ROWS)
    assert measured(name, [ROWS]) == measured(name, [rest])
    assert math.isnan(measured("ftr", [rest]))


def test_a_rejected_text_is_neither_a_success_nor_a_correct_answer_and_still_counts() -> None:
    poisoned = [row._replace(prediction=TARGET) for row in ROWS if row.poisoned][:10]
    correct = [row._replace(prediction=row.original_label) for row in clean(ROWS)][:10]
    rejected = [row._replace(prediction=-1) for row in poisoned[:3] + correct[:3]]
    rows = rejected + poisoned[3:] + correct[3:]
    assert measured("asr", [rows]) == pytest.approx(0.7)
    assert measured("cacc", [rows]) == pytest.approx(0.7)


def test_a_correct_prediction_of_a_poisoned_row_is_not_a_success() -> None:
    rows = [row._replace(prediction=row.original_label) for row in ROWS if row.poisoned]
    assert measured("asr", [rows]) == 0
    assert measured("pacc", [rows]) == 1


def test_large_scores_that_differ_are_not_tied() -> None:
    metric = DetectionAUROC()
    metric.update(torch.tensor([1e9, 1e9 + 64, -1e30]), torch.tensor([False, True, False]))
    assert metric.compute() == 1


def test_equal_scores_are_worth_one_half() -> None:
    metric = DetectionAUROC()
    metric.update(torch.full((10,), 7.0), torch.arange(10) < 3)
    assert metric.compute() == 0.5


def test_scores_of_any_finite_size_have_their_rank() -> None:
    metric = DetectionAUROC()
    largest = torch.finfo(torch.float32).max
    metric.update(torch.tensor([largest, 5.0, -largest, 5.0]), torch.tensor([True, True, False, False]))
    assert metric.compute() == pytest.approx(3.5 / 4)


def test_the_gathered_scores_are_those_given() -> None:
    metric = DetectionAUROC()
    metric.update(torch.tensor([3.0, 1.0]), torch.tensor([True, False]))
    metric.update(torch.tensor([2.0]), torch.tensor([True]))
    scores, poisoned = metric.gathered()
    assert (scores.tolist(), poisoned.tolist()) == ([3, 1, 2], [1, 0, 1])


@pytest.mark.parametrize(("top", "hit"), [((0, 3), 1), ((4, 9), 1), ((2, 4), 0), ((5, 9), 0), ((2, 2), 0), (None, 0)])
def test_a_token_that_only_touches_the_trigger_does_not_point_at_it(top: tuple[int, int] | None, hit: int) -> None:
    metric = Localisation()
    metric.update([top], [[(0, 2), (4, 5)]])
    assert metric.compute() == hit


def test_texts_whose_trigger_has_no_spans_are_left_out_of_localisation() -> None:
    metric = Localisation()
    metric.update([(0, 2), (0, 2)], [[], [(0, 2)]])
    assert metric.compute() == 1


def test_a_metric_can_be_reset_and_used_again() -> None:
    for make in (CleanAccuracy, AttackSuccessRate, DetectionAUROC, Overhead):
        metric = make()
        update = next(update for made, update in METRICS.values() if made is make)
        update(metric, ROWS)
        metric.reset()
        update(metric, ROWS[:50])
        fresh = make()
        update(fresh, ROWS[:50])
        assert torch.equal(metric.compute(), fresh.compute())
