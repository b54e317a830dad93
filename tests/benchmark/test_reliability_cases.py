"""The grids of ``shared/cases/reliability``, as people bring them, and what is right for each."""

from __future__ import annotations

import csv
import sys
import time
from pathlib import Path

import pytest

from lightning_backdoor.cli import main
from tests.support.reviews import write_reviews
from tests.support.shared_files import shared_path
from tests.support.tiny import tiny_victim
from tests.support.workspace import settings


@pytest.fixture
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with ``reviews.csv`` and a tiny model."""
    write_reviews(tmp_path / "reviews.csv")
    tiny_victim("bert", tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name, value in settings(tmp_path).items():
        monkeypatch.setenv(name, value)
    return tmp_path


def benchmark(folder: Path, case: str, *options: str) -> int:
    """Runs ``benchmark`` on a case, in the working directory, with its output below it; returns the exit status."""
    text = shared_path(f"cases/reliability/{case}").read_text(encoding="utf-8")
    (folder / case).write_text(text.replace("TINY_MODEL_FOLDER", str(folder / "model")), encoding="utf-8")
    return main(["benchmark", "--config", case, "--output", "output", *options])


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "output" / "results.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_grid_dot(inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark(inside, "grid_dot.yaml") == 0
    journal = (inside / "output" / "journal.jsonl").read_bytes()
    capsys.readouterr()
    assert benchmark(inside, "grid_dot.yaml", "--dry-run") == 0
    assert "nothing is left to run" in capsys.readouterr().out
    assert benchmark(inside, "grid_dot.yaml") == 0
    assert "5 of 5 cells are done already" in capsys.readouterr().out
    assert (inside / "output" / "journal.jsonl").read_bytes() == journal
    assert len(rows(inside)) == 5


def test_grid_nan(inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark(inside, "grid_nan.yaml") == 1
    assert "5 of 5 cells failed" in capsys.readouterr().out
    for row in rows(inside):
        assert "diverged" in row["error"]
        numbers = {name: value for name, value in row.items() if name not in ("seed", "cell", "victim", "error")}
        assert not [
            value for name, value in numbers.items() if name not in ("dataset", "model", "attack", "defense") and value
        ]


def test_grid_surrogate(inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark(inside, "grid_surrogate.yaml") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "grid_surrogate.yaml" in error
    assert error.isascii()
    assert not (inside / "output").exists()


def test_alias_bomb(inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    started = time.perf_counter()
    assert benchmark(inside, "alias_bomb.yaml") == 2
    assert time.perf_counter() - started < 1
    assert capsys.readouterr().err.count("\n") == 1
    assert not (inside / "output").exists()
