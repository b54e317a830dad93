"""Victims that are trained again, to other weights, while what was begun with the earlier ones is not done."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from lightning_backdoor.benchmark.grid import Cell, PlannedVictim
from lightning_backdoor.benchmark.running import worker
from lightning_backdoor.benchmark.running.journal import Journal
from lightning_backdoor.benchmark.running.products import Products
from lightning_backdoor.benchmark.running.worker import Worker
from lightning_backdoor.benchmark.table import ResultRow
from lightning_backdoor.benchmark.wandb_runs import WandbRuns
from tests.benchmark.grids import stub_command, stub_grid


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
