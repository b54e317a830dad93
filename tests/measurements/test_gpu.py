"""A GPU day at toy sizes on the processor: all parts, the table and the JSON file, and parts that fail or hang."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.measurements.gpu import running
from tests.measurements.gpu.__main__ import PARTS, main
from tests.measurements.gpu.gpu_tests import outcome
from tests.measurements.gpu.report import SCHEMA, Report, Row
from tests.measurements.gpu.running import Part, run_apart, run_here
from tests.measurements.gpu.setting import Setting, Skipped

RESULTS = """<testsuites><testsuite>
<testcase name="one"/><testcase name="two"><skipped/></testcase>{more}
</testsuite></testsuites>"""


def setting(folder: Path) -> Setting:
    return Setting("cpu", toy=True, folder=str(folder), log=str(folder / "log"), rounds=1)


def content(path: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return read


def measured(setting: Setting) -> Iterator[Row]:
    yield Row("one", "s", 1.0)


def failing(setting: Setting) -> Iterator[Row]:
    yield Row("before", "s", 1.0)
    raise torch.OutOfMemoryError("out of memory")


def hanging(setting: Setting) -> Iterator[Row]:
    yield Row("first", "s", 1.0)
    time.sleep(60)


def dying(setting: Setting) -> Iterator[Row]:
    yield Row("last", "s", 1.0)
    os._exit(9)


def lacking(setting: Setting) -> Iterator[Row]:
    yield from ()
    raise Skipped("one device")


def test_all_parts_are_measured_at_toy_sizes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)  # compilers take a minute
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setitem(PARTS, "GPU tests", Part(measured, 1))  # a pytest in a pytest
    output = tmp_path / "runs" / "gpu.json"
    assert main(["--toy", "--here", "--rounds", "1", "--output", str(output)]) == 0
    result = content(output)
    assert result["schema"] == SCHEMA
    assert result["toy"]
    assert result["machine"]["torch"] == torch.__version__
    statuses = {name: part["status"] for name, part in result["parts"].items()}
    assert statuses == {name: "skipped" if name == "two devices" else "measured" for name in PARTS}
    assert {row["part"] for row in result["rows"]} == {*PARTS} - {"two devices"}
    for row in result["rows"]:
        assert row["value"] > 0
        assert (row["ratio"] is None) == (row["reference"] is None)
        assert row["memory"] is None  # the processor's is not measured
    compiled = [row for row in result["rows"] if row["part"].endswith("compiled")]
    assert {row["precision"] for row in compiled} == {"bf16-mixed"}
    printed = capsys.readouterr().out
    assert "skipped: one device" in printed
    for row in result["rows"]:
        assert f"{row['part']}: {row['title']}, {row['precision']}: " in printed
    table = printed.partition("The library on one machine")[2]
    assert all(name in table for name in PARTS)


def test_results_are_written_as_they_come(tmp_path: Path) -> None:
    report = Report(tmp_path / "gpu.json", budget=60, toy=True)
    seen = []

    def looking(setting: Setting) -> Iterator[Row]:
        yield Row("one", "s", 1.0)
        seen.extend(content(report.path)["rows"])

    run_here({"failing": Part(failing, 60), "looking": Part(looking, 60)}, setting(tmp_path), report)
    assert [(row["part"], row["title"]) for row in seen] == [("failing", "before"), ("looking", "one")]
    parts = content(report.path)["parts"]
    assert (parts["failing"]["status"], parts["failing"]["reason"]) == ("failed", "OutOfMemoryError: out of memory")
    assert parts["looking"]["status"] == "measured"
    assert not report.complete


def test_a_part_that_fails_hangs_or_ends_its_process_costs_itself_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "LEAST", 0.0)
    report = Report(tmp_path / "gpu.json", budget=60, toy=True)
    measures = {"failing": failing, "hanging": hanging, "lacking": lacking, "dying": dying, "last": measured}
    parts = {name: Part(measure, 0.5 if name == "hanging" else 30) for name, measure in measures.items()}
    run_apart(parts, setting(tmp_path), report, seconds=60, start="fork")
    ended = {name: (part["status"], part["reason"]) for name, part in content(report.path)["parts"].items()}
    assert ended == {
        "failing": ("failed", "OutOfMemoryError: out of memory"),
        "hanging": ("cut", ended["hanging"][1]),
        "lacking": ("skipped", "one device"),
        "dying": ("failed", "its process ended with status 9"),
        "last": ("measured", ""),
    }
    assert re.fullmatch(r"not finished after \d+ seconds", ended["hanging"][1])
    assert [row.title for row in report.rows] == ["before", "first", "last", "one"]
    assert "torch.OutOfMemoryError: out of memory" in (tmp_path / "log").read_text(encoding="utf-8")


def test_all_parts_together_end_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "LEAST", 0.5)
    report = Report(tmp_path / "gpu.json", budget=1, toy=True)
    started = time.monotonic()
    parts = {"hanging": Part(hanging, 60), "late": Part(measured, 60)}
    run_apart(parts, setting(tmp_path), report, seconds=1, start="fork")
    assert time.monotonic() - started < 10
    assert [part["status"] for part in report.parts.values()] == ["cut", "cut"]
    assert report.parts["late"]["reason"] == "not begun: the 1 seconds of all parts were over"


@pytest.mark.parametrize("more", ["", '<testcase name="three"><failure/></testcase>'], ids=["passed", "failed"])
def test_outcomes_of_the_gpu_tests_are_counted(more: str, tmp_path: Path) -> None:
    results = tmp_path / "results.xml"
    results.write_text(RESULTS.format(more=more), encoding="utf-8")
    rows = outcome(results)
    row = next(rows)
    assert (row.value, row.note) == (1, f"1 skipped, {1 if more else 0} failed")
    if more:
        with pytest.raises(RuntimeError, match="1 of 3 tests failed: three"):
            next(rows)
    else:
        assert list(rows) == []


def test_gpu_tests_that_were_all_skipped_are_said_to_be(tmp_path: Path) -> None:
    results = tmp_path / "results.xml"
    results.write_text(RESULTS.format(more="").replace('<testcase name="one"/>', ""), encoding="utf-8")
    with pytest.raises(Skipped, match="1 tests need a GPU"):
        next(outcome(results))


def test_an_unknown_part_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["scorin"])
    assert "there is no part scorin; give GPU tests, scoring, ONION" in capsys.readouterr().err
