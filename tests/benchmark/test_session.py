"""One victim, several defenses: the passes that they share are made once, and every number is as without sharing."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lightning_backdoor.benchmark.grid import Cell, Grid
from lightning_backdoor.benchmark.running import worker
from lightning_backdoor.benchmark.running.journal import Journal
from lightning_backdoor.benchmark.running.run_command import run_command
from lightning_backdoor.benchmark.running.worker import Worker
from lightning_backdoor.benchmark.table import TIMINGS
from lightning_backdoor.data import datamodule
from lightning_backdoor.victim import classifier
from tests.benchmark.grids import SMALL

#: defenses of a user: one that reads hidden states, one that draws from a global generator, two that break.
OWN = """\
import torch
from lightning_backdoor.defenses import Defense
from lightning_backdoor.defenses.defense import Scores
from lightning_backdoor.models.captures import readout_states


class Norms(Defense):
    reads = frozenset({"hidden_states"})

    def score(self, victim, batch):
        states = readout_states(victim.network, batch["input_ids"], batch["attention_mask"])
        return Scores(states.norm(dim=-1).mean(dim=0).float())


class Dice(Defense):
    def score(self, victim, batch):
        return Scores(torch.rand(len(batch["text"]), device=batch["input_ids"].device))


class Broken(Defense):
    def score(self, victim, batch):
        victim.network.register_forward_hook(lambda module, inputs, output: output.logits.zero_())
        raise ArithmeticError("no score")


class Careless(Defense):
    def score(self, victim, batch):
        victim.network.classifier.bias.data[0] += 0.1  # not counted by torch
        return Scores(batch["attention_mask"].sum(dim=1).float())
"""
GRADIENT_ATTENTION = "lightning_backdoor.defenses.gradient_attention.GradientAttention"
STRIP = "lightning_backdoor.defenses.strip.Strip"


def inference(class_path: str, **arguments: Any) -> dict[str, Any]:
    return {"inference": {"class_path": class_path, "init_args": arguments}}


DEFENSES = {
    "none": None,
    "attention 5": inference(GRADIENT_ATTENTION, fpr=0.05),
    "attention 10": inference(GRADIENT_ATTENTION, fpr=0.10),
    "broken": inference("own_defenses.Broken"),
    "careless": inference("own_defenses.Careless"),
    "strip 1": inference(STRIP, fpr=0.01),
    "strip 5": inference(STRIP, fpr=0.05),
    "norms": inference("own_defenses.Norms", fpr=0.3),
    "dice": inference("own_defenses.Dice", fpr=0.3),
}


@pytest.fixture(scope="module")
def grid(workspace: Path) -> Path:
    """The grid of one victim and the defenses above."""
    (workspace / "own_defenses.py").write_text(OWN, encoding="utf-8")
    content = yaml.safe_load(SMALL)
    del content["attacks"]["none"]
    path = workspace / "session.yaml"
    path.write_text(yaml.safe_dump({**content, "defenses": DEFENSES}, sort_keys=False), encoding="utf-8")
    return path


def run_cells(grid: Grid, folder: Path, patched: pytest.MonkeyPatch, shares: bool) -> Counter[str]:
    """Runs the cells of a grid, in sessions or each on its own; returns what the tests have read, built and passed."""
    counts: Counter[str] = Counter()

    def command(kind: str, args: list[str], folder: Path, log: int, trainer: Any, session: Any = None) -> None:
        with pytest.MonkeyPatch.context() as of_test:
            if kind == "test":
                count(of_test, counts)
            run_command(kind, args, folder, log, trainer, session if shares else None)

    patched.setattr(worker, "run_command", command)
    Worker(folder, grid.cells, "launch").run()
    return counts


def test_sharing_changes_no_number_and_saves_passes(grid: Path, inside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(inside)
    planned, shared, apart = Grid(grid), inside / "shared", inside / "apart"
    shared.mkdir()
    of_shared = run_cells(planned, shared, monkeypatch, shares=True)
    shutil.copytree(shared, apart, ignore=shutil.ignore_patterns("cells", "journal.jsonl"))
    lines = (shared / "journal.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (apart / "journal.jsonl").write_text("".join(line for line in lines if '"victim"' in line), encoding="utf-8")
    of_apart = run_cells(planned, apart, monkeypatch, shares=False)
    for cell in planned.cells:
        found, expected = (event_of(folder, cell) for folder in (shared, apart))
        assert found == expected
        assert ("error" in found) == (cell.defense == "broken")
    # all is made again after the defense that breaks, and after the one that leaves the network changed
    assert (of_shared["read"], of_shared["built"]) == (3, 3)
    assert (of_apart["read"], of_apart["built"]) == (len(DEFENSES), len(DEFENSES))
    assert of_shared["passes"] < 0.6 * of_apart["passes"]
    # hidden states come with the victim's own passes over 5 + 3 batches of test rows; 2 more are of threshold rows
    assert of_apart["with states"] == 2 + 8
    assert of_shared["with states"] == 3 * 8 + 2


def event_of(folder: Path, cell: Cell) -> dict[str, Any]:
    """What the journal records of a cell, without what differs between two runs."""
    journal = Journal(folder / "journal.jsonl")
    journal.refresh()
    event = journal.get("cell", cell.id) or {}
    row = {name: value for name, value in event.get("row", {}).items() if name not in TIMINGS}
    return {"row": row, **{name: event[name] for name in ("error", "files") if name in event}}


def count(patched: pytest.MonkeyPatch, counts: Counter[str]) -> None:
    """Counts networks that are built, data that are read, and passes, by wrapping what makes them."""
    build, read = classifier.build_network, datamodule.read_clean_splits

    def counted_build(*args: Any) -> Any:
        built = build(*args)
        counts["built"] += 1

        def passes(module: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
            counts["passes"] += 1
            counts["with states"] += bool(kwargs.get("output_hidden_states"))

        built.network.register_forward_pre_hook(passes, with_kwargs=True)
        return built

    def counted_read(*args: Any) -> Any:
        counts["read"] += 1
        return read(*args)

    patched.setattr(classifier, "build_network", counted_build)
    patched.setattr(datamodule, "read_clean_splits", counted_read)
