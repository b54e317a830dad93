"""Victims that are trained again, to other weights, while what was begun with the earlier ones is not done."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_backdoor.benchmark.grid import Cell, PlannedVictim
from lightning_backdoor.benchmark.running import worker
from lightning_backdoor.benchmark.running.journal import Journal
from lightning_backdoor.benchmark.running.products import Products
from lightning_backdoor.benchmark.running.worker import Worker
from lightning_backdoor.benchmark.table import ResultRow
from lightning_backdoor.benchmark.wandb_runs import WandbRuns
from tests.benchmark.grids import REPAIRED, stub_command, stub_grid


class Killed(BaseException):
    """Stands for a kill."""


class Commands:
    """Stub commands that remember their folders and whether they resumed; ``weights`` are part of what is trained."""

    def __init__(self) -> None:
        self.weights = b""
        self.given: list[tuple[str, bool]] = []
        self.after: Callable[[str, Path], None] = lambda command, folder: None

    def __call__(
        self, command: str, args: list[str], folder: Path, log: int, trainer: Mapping[str, Any], *more: object
    ) -> None:
        self.given.append((folder.name, "--ckpt_path" in args))
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        stub_command(command, args, folder, log, trainer)
        if command == "fit":
            with (folder / "model" / "model.safetensors").open("ab") as file:
                file.write(self.weights)
        self.after(command, folder)


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> Commands:
    stub = Commands()
    monkeypatch.setattr(worker, "run_command", stub)
    return stub


def after_an_epoch(folder: Path) -> None:
    """Leaves the folder of a victim as a kill after an epoch does."""
    shutil.rmtree(folder / "model")
    (folder / "checkpoints" / "best.ckpt").unlink()
    torch.save({"state_dict": {}}, folder / "checkpoints" / "last.ckpt")


def before_its_record(folder: Path) -> None:
    """Leaves the folder of a victim as a kill between the end of its training and its record does."""
    with zipfile.ZipFile(folder / "checkpoints" / "best.ckpt", "w") as file:
        file.writestr("weights", b"whole")


def killed_repair(folder: Path, commands: Commands, leave: Callable[[Path], None]) -> tuple[Cell, PlannedVictim]:
    """A cell of a repaired victim, and the victim that is repaired, after a kill in the repair."""
    cell = stub_grid(folder / "grid.yaml", 1, 0, 1, **REPAIRED).cells[0]
    assert cell.victim.parent is not None

    def kill(command: str, of: Path) -> None:
        if of.name == cell.victim.id:
            leave(of)
            raise Killed

    commands.after = kill
    with pytest.raises(Killed):
        Worker(folder, [cell], "one").run()
    commands.after = lambda command, folder: None
    commands.given.clear()
    return cell, cell.victim.parent


class Logged(WandbRuns):
    """Remembers, in place of W&B, the cells that were logged, with the digests of their victims."""

    def __init__(self, folder: Path) -> None:
        super().__init__({}, folder)
        self.cells: list[tuple[str, str]] = []

    def log_victim(self, victim: PlannedVictim, run_folder: Path, digest: str) -> None:
        pass

    def log_cell(self, cell: Cell, row: ResultRow, cell_folder: Path, digest: str) -> None:
        self.cells.append((cell.id, digest))


def test_a_cell_is_recorded_and_logged_with_the_victim_that_it_was_tested_with(
    tmp_path: Path, commands: Commands
) -> None:
    cells = stub_grid(tmp_path / "grid.yaml", 1, 2, 1).cells
    victim = cells[0].victim

    def retrain(command: str, folder: Path) -> None:
        if command == "test":
            commands.after, commands.weights = lambda command, folder: None, b"other"
            shutil.rmtree(tmp_path / "victims" / victim.id)
            Worker(tmp_path, cells[1:], "two").run()

    commands.after = retrain
    logged = Logged(tmp_path)
    Worker(tmp_path, cells[:1], "one", wandb_runs=logged).run()
    assert [folder for folder, _ in commands.given] == [victim.id, cells[0].id, victim.id, cells[1].id, cells[0].id]
    journal = Journal(tmp_path / "journal.jsonl")
    events = [event for event in journal.refresh() if event["kind"] == "victim"]
    assert logged.cells == [(cells[0].id, event["digest"]) for event in events]
    assert len({event["digest"] for event in events}) == 2
    assert all(Products(tmp_path, journal).is_done(cell) for cell in cells)


@pytest.mark.parametrize("leave", [after_an_epoch, before_its_record])
def test_a_killed_repair_begins_anew_if_its_victim_has_other_weights(
    tmp_path: Path, commands: Commands, leave: Callable[[Path], None]
) -> None:
    cell, parent = killed_repair(tmp_path, commands, leave)
    shutil.rmtree(tmp_path / "victims" / parent.id)
    commands.weights = b"other"
    Worker(tmp_path, [cell], "two").run()
    assert commands.given == [(parent.id, False), (cell.victim.id, False), (cell.id, True)]


@pytest.mark.parametrize("leave", [after_an_epoch, before_its_record])
def test_a_killed_repair_goes_on_if_its_victim_has_the_same_weights(
    tmp_path: Path, commands: Commands, leave: Callable[[Path], None]
) -> None:
    cell, parent = killed_repair(tmp_path, commands, leave)
    shutil.rmtree(tmp_path / "victims" / parent.id)
    Worker(tmp_path, [cell], "two").run()
    repaired = [(cell.victim.id, True)] if leave is after_an_epoch else []
    assert commands.given == [(parent.id, False), *repaired, (cell.id, True)]


def test_a_killed_repair_begins_anew_if_no_weights_are_recorded_that_it_began_with(
    tmp_path: Path, commands: Commands
) -> None:
    cell, _ = killed_repair(tmp_path, commands, after_an_epoch)
    path = tmp_path / "journal.jsonl"
    events = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for event in events:
        if event["kind"] == "begun victim":
            del event["needs"], event["check"]
    path.write_text("".join(json.dumps(event) + "\n" for event in events), encoding="utf-8")
    Worker(tmp_path, [cell], "two").run()
    assert commands.given == [(cell.victim.id, False), (cell.id, True)]
