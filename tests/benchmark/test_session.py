"""One victim, several defenses: the passes that they share are made once, and every number is as without sharing."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Sequence
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

#: defenses of a user: one reads hidden states and leaves the network changed, one breaks while the network has a hook,
#: and one draws from a global generator.
OWN = """\
import torch
from lightning_backdoor.defenses import Defense
from lightning_backdoor.defenses.defense import Scores
from lightning_backdoor.models.captures import readout_states


class Norms(Defense):
    reads = frozenset({"hidden_states"})

    def score(self, victim, batch):
        states = readout_states(victim.network, batch["input_ids"], batch["attention_mask"])
        victim.network.classifier.bias.data += torch.tensor([0.1, 0.0])  # torch does not count this
        return Scores(states.norm(dim=-1).mean(dim=0).float())


class Broken(Defense):
    def score(self, victim, batch):
        victim.network.register_forward_hook(lambda module, inputs, output: output.logits.zero_())
        raise ArithmeticError("no score")


class Dice(Defense):
    def score(self, victim, batch):
        return Scores(torch.rand(len(batch["text"])))
"""
GRADIENT_ATTENTION = "lightning_backdoor.defenses.gradient_attention.GradientAttention"
STRIP = "lightning_backdoor.defenses.strip.Strip"


def inference(class_path: str, **arguments: Any) -> dict[str, Any]:
    return {"inference": {"class_path": class_path, "init_args": arguments}}


DEFENSES = {
    "none": None,
    "attention 5": inference(GRADIENT_ATTENTION, fpr=0.05),
    "attention 10": inference(GRADIENT_ATTENTION, fpr=0.10),
    "strip 1": inference(STRIP, fpr=0.01),
    "strip 5": inference(STRIP, fpr=0.05),
    "norms": inference("own_defenses.Norms", fpr=0.3),
    "broken": inference("own_defenses.Broken"),
    "dice": inference("own_defenses.Dice", fpr=0.3),
}
#: those that are also run alone.
ALONE = ("attention 10", "strip 5", "norms", "dice")


@pytest.fixture(scope="module")
def grid(workspace: Path) -> Path:
    """The grid of one victim and the defenses above."""
    (workspace / "own_defenses.py").write_text(OWN, encoding="utf-8")
    content = yaml.safe_load(SMALL)
    del content["attacks"]["none"]
    path = workspace / "session.yaml"
    path.write_text(yaml.safe_dump({**content, "defenses": DEFENSES}, sort_keys=False), encoding="utf-8")
    return path


def run_cells(
    cells: Sequence[Cell], folder: Path, patched: pytest.MonkeyPatch, shares: bool
) -> dict[str, Counter[str]]:
    """Runs cells, in sessions or each on its own; returns what each has read and built, and its passes."""
    counts: dict[str, Counter[str]] = {cell.defense: Counter() for cell in cells}
    names = {cell.id: cell.defense for cell in cells}

    def command(kind: str, args: list[str], into: Path, log: int, trainer: Any, session: Any = None) -> None:
        running[:] = [counts[names[into.name]] if kind == "test" else Counter()]
        run_command(kind, args, into, log, trainer, session if shares else None)

    running: list[Counter[str]] = []
    with patched.context() as within:
        count(within, running)
        within.setattr(worker, "run_command", command)
        Worker(folder, cells, "launch").run()
    return counts


def test_sharing_changes_no_number_and_saves_passes(grid: Path, inside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(inside)
    cells = Grid(grid).cells
    shared, alone = inside / "shared", inside / "alone"
    shared.mkdir()
    of_shared = run_cells(cells, shared, monkeypatch, shares=True)
    shutil.copytree(shared, alone, ignore=shutil.ignore_patterns("cells", "journal.jsonl"))
    lines = (shared / "journal.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (alone / "journal.jsonl").write_text("".join(line for line in lines if '"victim"' in line), encoding="utf-8")
    again = [cell for cell in cells if cell.defense in ALONE]
    of_alone = run_cells(again, alone, monkeypatch, shares=False)
    assert [cell.defense for cell in cells if "error" in event_of(shared, cell)] == ["broken"]
    for cell in again:
        found, expected = (event_of(folder, cell) for folder in (shared, alone))
        assert found == expected
    # read and built by the first; and anew after the network was left changed, and after a defense broke
    assert {name for name, counts in of_shared.items() if counts["read"]} == {"none", "broken", "dice"}
    assert {name for name, counts in of_shared.items() if counts["built"]} == {"none", "broken", "dice"}
    assert all(counts["read"] and counts["built"] for counts in of_alone.values())
    # 40 clean and 20 poisoned texts are 5 + 3 batches of 8, and 16 threshold rows are 2
    plain, threshold = 8, 2
    assert of_shared["none"]["passes"] == of_shared["none"]["with states"] == plain
    saved = {name: of_alone[name]["passes"] - of_shared[name]["passes"] for name in ALONE}
    assert saved["attention 10"] == plain + plain + threshold  # its repaired texts are its own
    assert of_shared["strip 5"]["passes"] == 0
    assert (of_alone["norms"]["passes"], of_shared["norms"]["passes"]) == (plain + threshold, threshold)


def event_of(folder: Path, cell: Cell) -> dict[str, Any]:
    """What the journal records of a cell, without what differs between two runs."""
    journal = Journal(folder / "journal.jsonl")
    journal.refresh()
    event = journal.get("cell", cell.id) or {}
    row = {name: value for name, value in event.get("row", {}).items() if name not in TIMINGS}
    return {"row": row, **{name: event[name] for name in ("error", "files") if name in event}}


def count(patched: pytest.MonkeyPatch, running: list[Counter[str]]) -> None:
    """Counts, for the cell that is running, networks that are built, data that are read, and passes."""
    build, read = vars(classifier)["build_network"], vars(datamodule)["read_clean_splits"]

    def counted_build(*args: Any) -> Any:
        built = build(*args)
        running[0]["built"] += 1
        built.network.register_forward_pre_hook(counted_pass, with_kwargs=True)
        return built

    def counted_pass(module: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        running[0]["passes"] += 1
        running[0]["with states"] += bool(kwargs.get("output_hidden_states"))

    def counted_read(*args: Any) -> Any:
        running[0]["read"] += 1
        return read(*args)

    patched.setattr(classifier, "build_network", counted_build)
    patched.setattr(datamodule, "read_clean_splits", counted_read)
