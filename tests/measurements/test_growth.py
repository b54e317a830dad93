"""The measurement of growth at toy sizes: every operation runs, every point is kept, and slopes are right."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import pytest

from tests.measurements import growth
from tests.measurements.growth import AXES, Point, measure_axis, print_axis, slope
from tests.measurements.growth_operations import OPERATIONS, Size

#: operations that take a second or more at any size.
SLOW = (growth.STARTED, "fit", "test", "scan", "fit (command)", "results and report", "read tsv", "read parquet")


@pytest.mark.parametrize("operation", [name for name in OPERATIONS if name not in SLOW])
def test_every_operation_runs(operation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIGHTNING_BACKDOOR_CACHE", str(tmp_path / "cache"))
    run = OPERATIONS[operation](Size(rows=240, classes=3))
    run()


def test_points_are_kept_and_those_that_are_kept_are_not_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[str, int]] = []

    def point(operation: str, size: Size) -> Point:
        asked.append((operation, size.rows))
        return Point(size.rows**1.5 / 1e4, size.rows / 1e3, 500.0, size.rows / 10)

    monkeypatch.setattr(growth, "in_a_process", point)
    args = argparse.Namespace(only="split", max=10_000, output=tmp_path / "growth.json")
    points = json.loads(json.dumps({"split | rows | 1000": point("split", Size(rows=1000))}))
    rows = list(measure_axis("rows", args, points))
    assert (rows, asked) == ([("split", [1_000, 10_000])], [("split", 1000), ("split", 10_000)])
    assert json.loads(args.output.read_text())["points"].keys() == points.keys()
    print_axis("rows", rows, points, "wall")
    printed = capsys.readouterr().out
    assert "1.50" in printed
    assert "above linear" in printed


def test_slopes_are_those_of_the_two_largest_points() -> None:
    assert slope([1, 10, 100], [7.0, 1.0, 100.0], 0.1) == pytest.approx(2)
    assert math.isnan(slope([10], [1.0], 0.1))
    assert math.isnan(slope([1, 10], [0.0, 5.0], 0.1))


def test_axes_name_operations_and_sizes_that_exist() -> None:
    assert {operation for axis in AXES.values() for operation in axis.operations} == OPERATIONS.keys()
    assert AXES.keys() == set(Size._fields)
