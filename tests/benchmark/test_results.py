"""A grid's results: each cell's outcomes are read once, and what is shown is computed once."""

from __future__ import annotations

import weakref
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from lightning_backdoor.benchmark import results, summaries
from lightning_backdoor.benchmark.console import Progress, print_table
from lightning_backdoor.benchmark.report import attack_sections
from lightning_backdoor.benchmark.report.grid_folders import read_grid
from lightning_backdoor.benchmark.report.page import report_html
from lightning_backdoor.benchmark.running.journal import Journal
from lightning_backdoor.benchmark.running.products import Products
from lightning_backdoor.benchmark.table import measured
from lightning_backdoor.benchmark.wandb_runs import grid_media
from lightning_backdoor.benchmark.write_results import write_results
from lightning_backdoor.outputs.outcomes import Outcome, read_outcomes, write_outcomes
from tests.benchmark.example import example
from tests.benchmark.grids import stub_grid


def test_outcomes_of_each_cell_are_opened_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = stub_grid(tmp_path / "grid.yaml", attacks=2, defenses=3, seeds=2)
    journal = Journal(tmp_path / "journal.jsonl")
    products = Products(tmp_path, journal)
    for cell in grid.cells:
        outcomes = [Outcome(i // 2, i % 2 == 1, "a", "b", "ab"[i % 3 == 0], score=float(i)) for i in range(20)]
        (tmp_path / "cells" / cell.id).mkdir(parents=True)
        write_outcomes(tmp_path / "cells" / cell.id / "outcomes.csv", outcomes)
        facts = {"row": measured({}, outcomes), "files": products.digests(cell)}
        journal.append("cell", cell.id, launch="one", seconds=1.0, **facts)
    opened: Counter[str] = Counter()
    open_path = Path.open

    def counting(path: Path, *args: Any, **options: Any) -> Any:
        opened[path.name if path.name != "outcomes.csv" else path.parent.name] += 1
        return open_path(path, *args, **options)

    monkeypatch.setattr(Path, "open", counting)
    written = write_results(grid, tmp_path, "")
    print_table(written, tmp_path)
    assert len(grid.cells) == 12
    assert {cell.id: opened[cell.id] for cell in grid.cells} == {cell.id: 1 for cell in grid.cells}
    # attacks with each and with all seeds, pairs of defenses, ASR, CACC, PACC and both AUROC
    assert len(written.comparisons) == 2 * 3 * 3 * 5


def test_results_are_read_with_the_grid_that_they_were_written_for(tmp_path: Path) -> None:
    grid = stub_grid(tmp_path / "grid.yaml", attacks=1, defenses=1, seeds=1)
    write_results(grid, tmp_path, "")
    changed = stub_grid(tmp_path / "changed.yaml", attacks=2, defenses=1, seeds=1)
    (tmp_path / "grids" / "0.yaml").write_text(changed.as_yaml(), encoding="utf-8")  # of a launch that goes on
    found = read_grid(tmp_path, "grid")
    assert [cell.names for cell in found.missing] == [cell.names for cell in grid.cells]
    assert found.configuration == grid.as_yaml()
    (tmp_path / "grids" / "results.yaml").unlink()  # as an earlier version left it
    assert read_grid(tmp_path, "grid").configuration == changed.as_yaml()


def test_seeds_are_put_together_once_for_all_that_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = example(tmp_path, attacks=("badnets",))
    made.inspect("share", {"none": [0.5, 1.0], "badnets": [2.0, 3.0]})
    calls = []

    def counting(rows: Any) -> Any:
        calls.append(len(rows))
        return summaries.over_seeds(rows)

    monkeypatch.setattr(results, "over_seeds", counting)
    found = made.results
    report_html("Grid", found, "", "")
    print_table(found, tmp_path)
    grid_media(found)
    assert calls == [len(made.rows)]


def test_outcomes_are_held_one_cell_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Outcomes(list[Any]):
        """A list that can be told to be gone."""

    alive: list[weakref.ref[Outcomes]] = []
    at_once: list[int] = []

    def watched(path: Path) -> Outcomes:
        at_once.append(sum(reference() is not None for reference in alive))
        outcomes = Outcomes(read_outcomes(path))
        alive.append(weakref.ref(outcomes))
        return outcomes

    made = example(tmp_path, attacks=("badnets",))
    monkeypatch.setattr(attack_sections, "read_outcomes", watched)
    assert made.results.comparisons
    assert len(at_once) == len(made.rows)
    assert max(at_once) <= 1  # the cell before, until its name is given to the next


def test_the_terminal_shows_metrics_with_numbers_and_inspections(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    made = example(tmp_path, attacks=("badnets",))
    print_table(made.results, tmp_path)
    without = capsys.readouterr().out
    assert "AUROC" in without
    assert "Inspection" not in without
    made.inspect("share", {"none": [0.5, 1.0], "badnets": [2.0, 0.75]})
    made.inspect("alone", {"badnets": [2.0]})
    print_table(made.results, tmp_path)
    shown = capsys.readouterr().out
    assert "Inspection" in shown
    assert "sst2 · minilm · share: AUROC over victims 0.750 (2 benign, 2 attacked victims)" in shown
    assert "sst2 · minilm · alone: AUROC over victims undefined (0 benign, 1 attacked victims)" in shown


def test_an_attack_that_does_not_count_is_marked_on_the_terminal_with_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    made = example(tmp_path, attacks=("badnets",), seeds=(0,))
    for row in made.rows:
        row |= {"asr": 1.0, "asr_floor": 1.0} if (row["attack"], row["defense"]) == ("badnets", "none") else {}
    print_table(made.results, tmp_path)
    shown = capsys.readouterr().out
    assert "Excess" in shown
    assert shown.count("not valid") == 6 + 1  # five defenses and the control, and the line below
    assert "sst2 · minilm · badnets: not valid, since excess ASR 0.000 is below 0.5" in shown


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"cacc": 0.5, "asr": 1.0, "asr_floor": 1.0}, "excess ASR 0.000; the attack is not valid: excess ASR 0.000 is"),
        ({"cacc": 0.9, "asr": 1.0, "asr_floor": 0.25}, "CACC 0.900, ASR 1.000, excess ASR 0.750 (1.0 s)"),
        ({"cacc": 0.9}, "CACC 0.900 (1.0 s)"),
    ],
)
def test_the_line_of_a_cell_has_the_excess_asr(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], row: dict[str, float], said: str
) -> None:
    grid = stub_grid(tmp_path / "grid.yaml", attacks=1, defenses=1, seeds=1)
    journal = Journal(tmp_path / "journal.jsonl")
    progress = Progress(grid.cells, journal)
    journal.append("cell", grid.cells[0].id, launch="one", seconds=1.0, row=row)
    progress.look()
    assert said in capsys.readouterr().out


def test_a_partial_grid_says_how_many_cells_are_missing_and_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = stub_grid(tmp_path / "grid.yaml", attacks=2, defenses=2, seeds=2)
    journal, (run, failed, of_victim, damaged, untrained, *_) = Journal(tmp_path / "journal.jsonl"), grid.cells
    products = Products(tmp_path, journal)
    for cell in (run, damaged):
        (tmp_path / "cells" / cell.id).mkdir(parents=True)
        write_outcomes(tmp_path / "cells" / cell.id / "outcomes.csv", [])
        facts = {"row": measured({}, []), "files": products.digests(cell)}
        journal.append("cell", cell.id, launch="one", seconds=1.0, **facts)
    (tmp_path / "cells" / damaged.id / "outcomes.csv").unlink()
    journal.append("cell", failed.id, launch="one", error="OSError: gone")
    journal.append("cell", of_victim.id, launch="one", error="victim: out of memory")
    journal.append("victim", untrained.victim.id, launch="one", error="killed")
    written = write_results(grid, tmp_path, "")
    why = {cell.names["attack"] + cell.names["defense"] + cell.names["seed"]: cell[1:] for cell in written.missing}
    names = {cell.id: cell.names["attack"] + cell.names["defense"] + cell.names["seed"] for cell in grid.cells}
    assert why[names[failed.id]] == ("failed", "OSError: gone")
    assert why[names[of_victim.id]] == ("victim failed", "out of memory")
    assert why[names[damaged.id]] == ("damaged", "outcomes.csv is missing")
    assert why[names[untrained.id]] == ("victim failed", "killed")
    assert [*why.values()].count(("not run", "")) == 2
    said = "1 of 8 cells (1 failed, 3 victim failed, 1 damaged, 2 not run)"
    assert written.cells_text == said
    assert {row["valid"] for row in written.rows} == {""}
    print_table(written, tmp_path)
    assert said in capsys.readouterr().out
    assert f"{said}." in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert made_cells_text(tmp_path) == "11 cells"


def made_cells_text(folder: Path) -> str:
    return example(folder / "whole", attacks=("badnets",), seeds=(0,)).results.cells_text
