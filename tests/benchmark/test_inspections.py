"""Inspections over a grid's victims: which victims are compared, and the AUROC."""

from __future__ import annotations

from typing import Any

import pytest
from torch import tensor

from lightning_backdoor.benchmark.summaries import inspected_victims
from lightning_backdoor.benchmark.table import ResultRow
from lightning_backdoor.metrics import DetectionAUROC
from tests.benchmark.test_table import row


def judged(attack: str, score: float, seed: int = 0, **values: Any) -> ResultRow:
    return row(attack, "share", seed, inspection_score=score, **values)


def test_the_auroc_is_over_attacks_and_seeds_with_ties_counting_half() -> None:
    rows = [
        *(judged("benign", 0.1), judged("benign", 2.0, 1), judged("benign", 1.0, 2)),
        *(judged("badnets", 3.0), judged("badnets", 2.0, 1), judged("style", 0.5)),
    ]
    rows += [row("badnets", "none"), judged("style", 9.0, 1, error="broken")]
    (inspection,) = inspected_victims(rows, "benign")
    assert inspection.names == {"dataset": "d", "model": "m", "defense": "share"}
    assert [row["inspection_score"] for row in inspection.benign] == [2.0, 1.0, 0.1]
    assert [row["inspection_score"] for row in inspection.attacked] == [3.0, 2.0, 0.5]
    metric = DetectionAUROC()
    metric.update(tensor([0.1, 2.0, 1.0, 3.0, 2.0, 0.5]), tensor([False] * 3 + [True] * 3))
    assert inspection.auroc == pytest.approx(float(metric.compute()))
    assert inspection.auroc == pytest.approx((3 + 2.5 + 1) / 9)


def test_victims_of_one_kind_alone_have_no_auroc() -> None:
    (attacked,) = inspected_victims([judged("badnets", 3.0)], "benign")
    assert (attacked.auroc, attacked.benign, len(attacked.attacked)) == (None, [], 1)
    (benign,) = inspected_victims([judged("benign", 3.0)], "benign")
    assert (benign.auroc, len(benign.benign), benign.attacked) == (None, 1, [])
    (without_benign,) = inspected_victims([judged("benign", 3.0)], None)
    assert len(without_benign.attacked) == 1


def test_data_sets_models_and_inspections_are_judged_apart() -> None:
    rows = [judged("benign", 0.0), judged("badnets", 1.0)]
    rows += [{**r, "dataset": "other"} for r in rows] + [{**r, "defense": "second"} for r in rows]
    places = [tuple(inspection.names.values()) for inspection in inspected_victims(rows, "benign")]
    assert places == [("d", "m", "share"), ("other", "m", "share"), ("d", "m", "second")]
    assert inspected_victims([row("badnets", "none")], "benign") == []
