"""Victims and cells damaged on disk: none is used, each is said and made again, and the table is as before."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from lightning_backdoor.benchmark.grid import Grid
from lightning_backdoor.benchmark.running import products, worker
from lightning_backdoor.benchmark.running.journal import Journal
from lightning_backdoor.benchmark.running.products import Products
from lightning_backdoor.benchmark.write_results import write_results
from lightning_backdoor.cli import main
from lightning_backdoor.errors import InputError
from tests.benchmark.grids import REPAIRED, stub_command, stub_grid


class Run:
    """A finished grid of 1 attack and 2 defenses, 2 with a repair: 4 cells, 2 victims; and what later calls run."""

    def __init__(self, folder: Path, finished: Path | None, monkeypatch: pytest.MonkeyPatch) -> None:
        self.commands: Counter[str] = Counter()
        self.fails = ""
        self.folder = folder / "output"
        self.config = folder / "grid.yaml"
        stub_grid(self.config, attacks=1, defenses=2, seeds=1, **REPAIRED)
        monkeypatch.setattr(worker, "run_command", self._command)
        monkeypatch.setattr("lightning_backdoor.benchmark.running.run_grid.check_cell", lambda cell, kept: None)
        if finished is None:
            assert self() == 0
        else:
            shutil.copytree(finished, self.folder)
        self.grid = Grid(self.config, self.folder)
        self.before = self.table()

    def __call__(self, *options: str) -> int:
        return main(["benchmark", "--config", str(self.config), "--output", str(self.folder), *options])

    def _command(
        self, command: str, args: list[str], folder: Path, log: int, trainer: Mapping[str, Any], *more: object
    ) -> None:
        self.commands[command] += 1
        if command == self.fails:
            raise InputError("loss", "diverged in step 3", "use a lower learning rate")
        stub_command(command, args, folder, log, trainer)

    def table(self) -> list[dict[str, str]]:
        with (self.folder / "results.csv").open(encoding="utf-8", newline="") as file:
            return [{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(file)]

    def victim(self) -> Path:
        """The folder of an undefended victim: two cells of its own, and a repaired victim with two more."""
        return self.folder / "victims" / self.grid.cells[0].victim.id

    def cell(self) -> Path:
        return self.folder / "cells" / self.grid.cells[0].id


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as monkeypatch:
        return Run(tmp_path_factory.mktemp("finished"), None, monkeypatch).folder


@pytest.fixture
def run(tmp_path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    return Run(tmp_path, finished, monkeypatch)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def change(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut_at_a_line_end(path: Path) -> None:
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))


def add_a_line(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"99,1,a,b,b,b,1,0,0.5,\r\n")


def blank(path: Path) -> None:
    path.write_bytes(b"\0" * len(path.read_bytes()))


def of_another_program(path: Path) -> None:
    path.write_text('{"text": "of another program"}\n', encoding="utf-8")


def into_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def grow(path: Path) -> None:
    path.write_bytes(b"more" + path.read_bytes())


DAMAGE: list[tuple[str, Callable[[Path], None]]] = [
    ("model/model.safetensors", cut),
    ("model/model.safetensors", change),
    ("model/model.safetensors", Path.unlink),
    ("model", shutil.rmtree),
    ("checkpoints/best.ckpt", Path.unlink),
    ("checkpoints/best.ckpt", grow),
    ("checkpoints", shutil.rmtree),
    ("config.yaml", change),
    ("config.yaml", Path.unlink),
    ("", shutil.rmtree),
]


@pytest.mark.parametrize(("name", "damage"), DAMAGE, ids=[f"{name} {damage.__name__}" for name, damage in DAMAGE])
def test_a_damaged_victim_is_trained_again_with_all_that_used_it(
    run: Run, capsys: pytest.CaptureFixture[str], name: str, damage: Callable[[Path], None]
) -> None:
    damage(run.victim() / name)
    journal = (run.folder / "journal.jsonl").read_bytes()
    capsys.readouterr()
    assert run("--dry-run") == 0
    plan = capsys.readouterr().out
    assert plan.count(": to run again, since") == 4
    assert f"  {run.grid.cells[0].victim.label}, since " in plan
    assert (run.folder / "journal.jsonl").read_bytes() == journal
    assert run() == 0
    said = capsys.readouterr().out
    assert run.commands == {"fit": 2, "test": 4}
    assert run.table() == run.before
    assert said.count("so it is trained again") == 2
    assert said.count("so it is tested again") == 4
    assert "cells are done already" not in said
    assert run() == 0
    assert run.commands == {"fit": 2, "test": 4}  # it is whole again


CELLS: list[tuple[str, Callable[[Path], None]]] = [
    ("outcomes.csv", cut),
    ("outcomes.csv", cut_at_a_line_end),
    ("outcomes.csv", add_a_line),
    ("outcomes.csv", blank),
    ("outcomes.csv", Path.unlink),
    ("outcomes.csv", into_a_folder),
    ("texts.jsonl", cut),
    ("texts.jsonl", blank),
    ("texts.jsonl", of_another_program),
    ("outcomes.csv", change),
    ("texts.jsonl", cut_at_a_line_end),
    ("texts.jsonl", Path.unlink),
    ("words.json", cut),
    ("words.json", Path.unlink),
    ("inspection.json", cut),
    ("inspection.json", change),
    ("", shutil.rmtree),
]


@pytest.mark.parametrize(("name", "damage"), CELLS, ids=[f"{name} {damage.__name__}" for name, damage in CELLS])
def test_a_damaged_cell_is_tested_again_and_never_read(
    run: Run, capsys: pytest.CaptureFixture[str], name: str, damage: Callable[[Path], None]
) -> None:
    damage(run.cell() / name)
    rows = write_results(run.grid, run.folder, "").rows
    assert run.grid.cells[0].id not in {row["cell"] for row in rows}
    assert len(rows) == 3
    capsys.readouterr()
    assert run() == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "tested again" in line]
    assert line.startswith(f"{run.grid.cells[0].label}: ")
    assert run.commands == {"test": 1}
    assert run.table() == run.before


def test_another_cells_file_is_not_taken_for_its_own(run: Run) -> None:
    other = run.folder / "cells" / run.grid.cells[1].id
    shutil.copyfile(other / "outcomes.csv", run.cell() / "outcomes.csv")
    assert run() == 0
    assert run.commands == {"test": 1}
    assert run.table() == run.before


@pytest.mark.parametrize("kind", ["cell", "victim"])
def test_a_file_that_another_program_has_added_is_not_taken_for_a_cells_own(run: Run, kind: str) -> None:
    added = run.cell() / "texts.jsonl" if kind == "cell" else run.victim() / "cleaning.json"
    if kind == "cell":
        path = run.folder / "journal.jsonl"
        event = json.loads(path.read_text(encoding="utf-8").splitlines()[-1])
        digest = event["files"]["texts.jsonl"]
        text = path.read_text(encoding="utf-8").replace(f', "texts.jsonl": "{digest}"', "")
        text = re.sub(', "check": "[0-9a-f]+"', "", text)
        path.write_text(text, encoding="utf-8")
        assert text.count("texts.jsonl") < 4
    added.write_text("{}", encoding="utf-8")
    assert run() == 0
    assert run.commands["test"] >= 1
    assert run.table() == run.before


@pytest.mark.parametrize("name", ["words.json", "inspection.json"])
def test_words_that_an_earlier_record_does_not_have_are_read_unless_they_are_damaged(run: Run, name: str) -> None:
    path = run.folder / "journal.jsonl"
    text = re.sub(f', "({name}|check)": "[0-9a-f]+"', "", path.read_text(encoding="utf-8"))
    assert name not in text
    path.write_text(text, encoding="utf-8")
    assert run() == 0
    assert not run.commands
    cut(run.cell() / name)
    assert run() == 0
    assert run.commands == {"test": 1}
    assert run.table() == run.before


@pytest.mark.parametrize("kind", ["cell", "victim"])
def test_a_file_in_place_of_the_folder_of_a_cell_or_victim_gives_way(run: Run, kind: str) -> None:
    folder = run.cell() if kind == "cell" else run.victim()
    shutil.rmtree(folder)
    folder.write_text("a note", encoding="utf-8")
    assert run() == 0
    assert folder.is_dir()
    assert run.table() == run.before


@pytest.mark.parametrize("fact", ["files", "seconds", "row", "digest"])
def test_what_is_recorded_incompletely_is_made_again(run: Run, fact: str) -> None:
    path = run.folder / "journal.jsonl"
    events = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for event in events:
        event.pop(fact, None)
        event.pop("check", None)
    path.write_text("".join(json.dumps(event) + "\n" for event in events), encoding="utf-8")
    assert run() == 0
    assert run.commands == ({"test": 4} if fact == "row" else {"fit": 2, "test": 4})
    assert run.table() == run.before


def test_a_victim_that_is_lost_and_cannot_be_trained_again_is_no_success(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(run.folder / "victims")
    shutil.rmtree(run.folder / "cells")
    run.fails = "fit"
    assert run() == 1
    assert "4 of 4 cells failed" in capsys.readouterr().out
    assert len(run.table()) == 4
    for row in run.table():
        assert "diverged" in row["error"]
        assert not row["cacc"]
        assert not row["n_clean"]
    run.fails = ""
    assert run() == 0
    assert run.table() == run.before


def test_cells_of_a_diverged_victim_fail_with_its_error_and_without_numbers(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    run.config.write_text(run.config.read_text(encoding="utf-8").replace("- 0\n", "- 1\n"), encoding="utf-8")
    run.fails = "fit"
    assert run() == 1
    errors = [row["error"] for row in run.table()]
    assert len(errors) == 4
    assert all("loss: diverged in step 3; use a lower learning rate" in error for error in errors)
    assert not [row for row in run.table() if row["cacc"] or row["asr"] or row["auroc"] or row["valid"]]
    assert "failed: victim: loss: diverged" in capsys.readouterr().out


def test_what_is_damaged_while_the_grid_runs_is_not_in_the_table(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(run.cell())
    command = run._command

    def damaging(*args: Any) -> None:
        command(*args)
        cut(run.folder / "cells" / run.grid.cells[1].id / "outcomes.csv")

    monkeypatch.setattr(worker, "run_command", damaging)
    assert run() == 1
    assert "1 of 4 cells are left" in capsys.readouterr().out
    assert len(run.table()) == 3


def test_a_checkpoint_with_a_changed_byte_is_not_whole(tmp_path: Path) -> None:
    import torch

    path = tmp_path / "best.ckpt"
    torch.save({"state_dict": {"weight": torch.rand(2000)}}, path)
    assert products.is_whole_checkpoint(path)
    change(path)
    assert not products.is_whole_checkpoint(path)
    for size in (5000, 100, 0):
        path.write_bytes(path.read_bytes()[:size])
        assert not products.is_whole_checkpoint(path)
    assert not products.is_whole_checkpoint(tmp_path / "missing.ckpt")


def test_a_foreign_line_in_the_journal_is_said_once(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    with (run.folder / "journal.jsonl").open("a", encoding="utf-8") as file:
        file.write("\x1b[31mred\n")
    assert run() == 0
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: "))
    number = (run.folder / "journal.jsonl").read_text(encoding="utf-8").splitlines().index("\x1b[31mred") + 1
    assert f"journal.jsonl, line {number}, is not an event of a grid (not JSON) and is skipped" in line


def test_files_are_hashed_once_per_process(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    products._digests.clear()
    hashed: Counter[Path] = Counter()

    def counting(function: Callable[[Path], str]) -> Callable[[Path], str]:
        def counted(path: Path) -> str:
            hashed[path] += 1
            return function(path)

        return counted

    for name in ("file_sha256", "model_sha256"):
        monkeypatch.setattr(products, name, counting(getattr(products, name)))
    assert run() == 0
    assert run("--dry-run") == 0
    assert set(hashed.values()) == {1}
    assert len(hashed) == 2 * 3 + 4 * 4


def test_only_what_is_to_run_is_looked_at(run: Run) -> None:
    journal = Journal(run.folder / "journal.jsonl")
    journal.refresh()
    shutil.rmtree(run.victim())
    found = Products(run.folder, journal)
    assert found.forget_damaged([]) == {}
    assert len(found.forget_damaged(run.grid.cells[:1])) == 2


def test_what_was_made_with_another_victim_is_made_again(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(run.victim())
    command = run._command

    def other(name: str, args: list[str], folder: Path, log: int, trainer: Mapping[str, Any], *more: object) -> None:
        command(name, args, folder, log, trainer)
        if folder == run.victim():
            grow(folder / "model" / "model.safetensors")

    monkeypatch.setattr(worker, "run_command", other)
    assert run("--only", "defense=defense 0") == 0
    assert run.commands == {"fit": 1, "test": 1}
    assert run() == 0
    assert run.commands == {"fit": 2, "test": 4}
