"""What names stand for: grids whose data, code or settings differ are never put together as seeds of one."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_backdoor.benchmark import meanings
from lightning_backdoor.benchmark.grid import Grid
from lightning_backdoor.benchmark.running.journal import Journal
from lightning_backdoor.benchmark.running.products import Products
from lightning_backdoor.benchmark.table import measured
from lightning_backdoor.benchmark.write_results import write_results
from lightning_backdoor.cli import main
from lightning_backdoor.outputs.outcomes import Outcome, write_outcomes
from tests.benchmark.grids import stub_grid

OF_PATH = {"class_path": "stub.Data", "init_args": {"source": {"path": "data.csv"}}}


def finished(folder: Path, seed: int, monkeypatch: pytest.MonkeyPatch, content: str, **changes: Any) -> None:
    """A folder with ``data.csv``, in which a grid of one cell has run."""
    (folder / "corpus").mkdir(parents=True)
    monkeypatch.chdir(folder)
    (folder / "data.csv").write_text(content, encoding="utf-8")
    stub_grid(folder / "grid.yaml", 1, 1)
    settings = yaml.safe_load((folder / "grid.yaml").read_text(encoding="utf-8"))
    settings |= {"datasets": {"texts": OF_PATH}, "seeds": [seed], **changes}
    (folder / "grid.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    output = folder / "out"
    grid = Grid(folder / "grid.yaml", output)
    journal = Journal(output / "journal.jsonl")
    for cell in grid.cells:
        (output / "cells" / cell.id).mkdir(parents=True)
        outcomes = [Outcome(0, True, "a", "b", "b"), Outcome(0, False, "a", "a", "a")]
        write_outcomes(output / "cells" / cell.id / "outcomes.csv", outcomes)
        facts = {"row": measured({"test/cacc": 0.5}, outcomes), "files": Products(output, journal).digests(cell)}
        journal.append("cell", cell.id, launch="one", seconds=1.0, **facts)
    (folder / "data.csv").write_text("changed while cells ran", encoding="utf-8")
    write_results(grid, output, "")


def reported(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """Dataset, model, attack and defense of the rows of a report of all grids below a folder."""
    monkeypatch.chdir(folder)
    assert main(["report", "."]) == 0
    with (folder / "report" / "results.csv").open(encoding="utf-8") as file:
        return [tuple(row[name] for name in ("dataset", "model", "attack", "defense")) for row in csv.DictReader(file)]


SAME = ("texts", "stub", "attack 0", "defense 0")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {
            "datasets": {"texts": {"data": {"init_args": {"source": {"splits": {"test": "../data.csv"}}}}}},
            "base": {"data": {"init_args": {"source": {"path": "corpus"}}}},
        },
    ],
    ids=str,
)
@pytest.mark.parametrize("same", [False, True])
def test_names_mean_the_same_only_if_the_files_behind_them_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], same: bool
) -> None:
    finished(tmp_path / "a", 0, monkeypatch, "1", **changes)
    finished(tmp_path / "b", 1, monkeypatch, "1" if same else "2", **changes)
    datasets = ["texts", "texts"] if same else ["texts (a/out)", "texts (b/out)"]
    assert reported(tmp_path, monkeypatch) == [(dataset, *SAME[1:]) for dataset in datasets]


def test_results_of_other_format_numbers_are_told_apart_at_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished(tmp_path / "a", 0, monkeypatch, "1")
    monkeypatch.setattr(meanings, "RESULTS_FORMAT", "0")
    finished(tmp_path / "b", 1, monkeypatch, "1")
    models = ("stub (a/out)", "stub (b/out)")
    assert reported(tmp_path, monkeypatch) == [(SAME[0], model, *SAME[2:]) for model in models]


def test_folders_of_earlier_versions_mean_the_same_by_their_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed, name in enumerate("ab"):
        finished(tmp_path / name, seed, monkeypatch, name)
        (tmp_path / name / "out" / "grids" / "results.json").unlink()
    assert reported(tmp_path, monkeypatch) == [SAME, SAME]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"dataset": 1}', '{"a": "\xff"}'])
def test_a_damaged_record_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], content: str
) -> None:
    finished(tmp_path / "a", 0, monkeypatch, "1")
    (tmp_path / "a" / "out" / "grids" / "results.json").write_text(content, encoding="latin-1")
    assert main(["report", str(tmp_path / "a")]) == 2
    said = capsys.readouterr().err
    assert "results.json: is not what benchmark wrote" in said
    assert said.count("\n") == 1
