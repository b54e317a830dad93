"""Defenses of every moment in a grid: which victims they need, in which order these are trained, and what is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_backdoor.benchmark.console import Progress, plan_text, time_left
from lightning_backdoor.benchmark.fragments import Fragment
from lightning_backdoor.benchmark.grid import Cell, Grid, PlannedVictim, all_victims
from lightning_backdoor.benchmark.running import worker
from lightning_backdoor.benchmark.running.journal import Journal, claimed
from lightning_backdoor.benchmark.running.run_command import CommandError, check_cell
from lightning_backdoor.benchmark.running.worker import PATIENCE, Worker
from lightning_backdoor.benchmark.write_results import write_results
from lightning_backdoor.data.kept import Kept
from lightning_backdoor.errors import InputError
from tests.benchmark.grids import REPAIRED, inference, stub_command, stub_grid

CLEANING = {"class_path": "stub.Cleaning"}
LOOKING = {"data": {"init_args": {"data_defense": CLEANING, "victim": "undefended"}}}
CALLBACK = {"class_path": "stub.Callback"}


def cells_by_defense(tmp_path: Path, **defenses: Any) -> dict[str, Cell]:
    """The cells of a grid of one attack, one seed, no defense, and those given."""
    grid = stub_grid(tmp_path / "grid.yaml", 1, 0, 1, none=None, **defenses)
    return {cell.defense: cell for cell in grid.cells}


class Commands:
    """Stub commands that remember what they were given; those of which ``fails`` is true fail."""

    def __init__(self, fails: str = "no such text") -> None:
        self.fails = fails
        self.given: list[tuple[str, str, Fragment]] = []

    def __call__(
        self, command: str, args: list[str], folder: Path, log: int, trainer: Mapping[str, Any], *more: object
    ) -> None:
        text = (folder / f"{command}.yaml").read_text(encoding="utf-8")
        self.given.append((command, folder.name, yaml.safe_load(text)))
        if self.fails in text:
            raise CommandError("no memory")
        stub_command(command, args, folder, log, trainer)

    def ids(self, command: str) -> list[str]:
        """Ids of the victims trained or of the cells tested, in order."""
        return [id for name, id, _ in self.given if name == command]


def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cells: Sequence[Cell], launch: str = "one", **fails: str
) -> Commands:
    commands = Commands(**fails)
    monkeypatch.setattr(worker, "run_command", commands)
    Worker(tmp_path, cells, launch).run()
    return commands


def test_a_class_path_at_each_moment_stands_for_its_fragment(tmp_path: Path) -> None:
    moments = ("data", "training", "repair", "inference", "inspection")
    cells = cells_by_defense(tmp_path, **{moment: {moment: {"class_path": f"stub.{moment}"}} for moment in moments})
    undefended = cells["none"].victim
    assert cells["data"].victim.config["data"]["init_args"] == {"data_defense": {"class_path": "stub.data"}}
    assert cells["training"].victim.config["trainer"]["callbacks"] == [{"class_path": "stub.training"}]
    repaired = cells["repair"].victim
    assert repaired.config["trainer"]["callbacks"] == [{"class_path": "stub.repair"}]
    assert repaired.parent == undefended
    assert [cells[name].victim.parent for name in ("data", "training", "inference", "inspection")] == [None] * 4
    assert cells["inference"].victim == cells["inspection"].victim == undefended
    for moment, callback, argument in (
        ("inference", "InferenceDefense", "defense"),
        ("inspection", "InspectionCallback", "inspection"),
    ):
        assert cells[moment].config["trainer"]["callbacks"] == [
            {
                "class_path": f"lightning_backdoor.callbacks.{callback}",
                "init_args": {argument: {"class_path": f"stub.{moment}"}},
            }
        ]
    assert len(all_victims(cells.values())) == 4


def test_presets_and_fragments_are_taken_at_each_moment(tmp_path: Path) -> None:
    (tmp_path / "clean.yaml").write_text(yaml.safe_dump(LOOKING), encoding="utf-8")
    named = {"class_path": "stub.Inspecting", "init_args": {"name": "mine"}}
    entry = {"data": "clean.yaml", "training": CALLBACK, "inspection": {"trainer": {"callbacks+": [named]}}}
    cells = cells_by_defense(tmp_path, all=entry)
    assert cells["all"].victim.config["data"]["init_args"]["data_defense"] == CLEANING
    assert cells["all"].victim.config["trainer"]["callbacks"] == [CALLBACK]
    assert cells["all"].config["trainer"]["callbacks"] == [CALLBACK, {"class_path": "stub.Inspecting", "init_args": {}}]


def test_presets_of_the_command_line_are_entries_of_a_grid_and_are_found_from_any_folder(tmp_path: Path) -> None:
    cells = cells_by_defense(
        tmp_path,
        cleaned={"data": "configs/defense/onion_data.yaml"},
        tuned={"repair": "configs/defense/fine_tuning.yaml", "inspection": "configs/defense/flagged_share.yaml"},
    )
    cleaned, tuned = cells["cleaned"].victim, cells["tuned"].victim
    assert cleaned.parent is None
    assert cleaned.config["data"]["init_args"]["data_defense"]["class_path"].endswith(".Onion")
    assert tuned.parent == cells["none"].victim
    assert tuned.config["data"]["init_args"] == {"train_on": "trusted"}
    (inspection,) = cells["tuned"].config["trainer"]["callbacks"]
    assert inspection["class_path"] == "lightning_backdoor.callbacks.InspectionCallback"
    assert "name" not in inspection["init_args"]


def test_a_data_defense_looks_through_the_undefended_victim_even_if_no_cell_shows_it(tmp_path: Path) -> None:
    cells = stub_grid(tmp_path / "grid.yaml", 2, 0, 2, looking={"data": LOOKING}).cells
    assert [cell.defense for cell in cells] == ["looking"] * 4
    victims = list(all_victims(cells).values())
    assert [victim.training for victim in victims] == ["", "looking"] * 4
    for first, second in zip(victims[::2], victims[1::2], strict=True):
        assert second.parent == first
        assert second.config["data"]["init_args"]["victim"] == first.id
        assert (second.attack, second.seed) == (first.attack, first.seed)


def test_a_repair_begins_with_the_undefended_victim_or_with_the_one_of_cleaned_rows(tmp_path: Path) -> None:
    repair = {"data": {"init_args": {"train_on": "trusted"}}}
    cells = cells_by_defense(
        tmp_path,
        repair={"repair": repair},
        both={"data": LOOKING, "repair": repair, "inference": inference(0)},
        cleaned={"data": LOOKING},
        again={"repair": repair, "inspection": inference(1)},
    )
    undefended, repaired, both = (cells[name].victim for name in ("none", "repair", "both"))
    assert repaired.config["model"]["init_args"]["published"] == undefended.id
    assert repaired.config["data"]["init_args"] == {"train_on": "trusted"}
    assert both.parent == cells["cleaned"].victim
    assert both.parent is not None
    assert both.parent.parent == undefended
    assert both.parent.training == "cleaned"
    assert both.config["data"]["init_args"] == {"train_on": "trusted"}  # the rows were cleaned for the first training
    assert cells["again"].victim == repaired
    assert repaired.training == "repair"
    assert [victim.training for victim in all_victims([cells["both"]]).values()] == ["", "cleaned", "both"]


def test_ids_of_repaired_victims_depend_on_the_parent_and_not_on_the_folder(tmp_path: Path) -> None:
    def ids(folder: str, rate: float) -> tuple[str, str]:
        (tmp_path / folder).mkdir(exist_ok=True)
        path = tmp_path / folder / "grid.yaml"
        stub_grid(path, 1, 0, 1, **REPAIRED)
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        content["base"] = {"model": {"init_args": {"poison_rate": rate}}}
        path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
        first, second = Grid(path).cells
        assert first.victim == second.victim
        return first.victim.id, first.id

    assert ids("one", 0.1) == ids("two", 0.1)
    assert not {*ids("one", 0.1)} & {*ids("one", 0.2)}


def test_a_corrected_metric_gives_new_cells_and_a_corrected_attack_new_victims(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ids() -> tuple[set[str], set[str]]:
        cells = stub_grid(tmp_path / "grid.yaml", 1, 1, 1, **REPAIRED).cells
        return {*all_victims(cells)}, {cell.id for cell in cells}

    victims, cells = ids()
    monkeypatch.setattr("lightning_backdoor.benchmark.grid.RESULTS_FORMAT", "0.1.1")
    assert ids()[0] == victims
    assert not ids()[1] & cells
    monkeypatch.setattr("lightning_backdoor.benchmark.grid.VICTIM_FORMAT", "0.1.1")
    assert not ids()[0] & victims


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"repair": CALLBACK, "training": CALLBACK}, "defenses.x has training and repair"),
        ({"cleaning": CALLBACK}, "give any of data, training, repair, inference, inspection"),
        ({"data": {"init_args": {}}}, "defenses.x.data is {'init_args': {}}; give the path"),
        ({"inspection": "no.yaml"}, "no.yaml cannot be read"),
        ({"data": None, "repair": None}, "the entry without a defense, and no other, is none"),
        ({"data": {}, "repair": CALLBACK}, "defenses.x.data is empty; give a defense, or leave it out"),
        ({"data": {"data": 3}}, "defenses.x.data.data is 3; give names and values"),
        ({"data": {"data": {"init_args": 3}}}, "defenses.x.data.data is {'init_args': 3}; give names and values"),
        *(
            ({moment: {"trainer": trainer}}, f"defenses.x.{moment} does not have exactly one callback; give one under")
            for moment in ("inference", "inspection")
            for trainer in (
                {"callbacks+": [CALLBACK, CALLBACK]},
                {"callbacks": CALLBACK, "callbacks+": [CALLBACK]},
                {"callbacks": [3]},
                {"callbacks": None},
                {"limit_test_batches": 3},
            )
        ),
        ("onion_data.yaml", "defenses.x is 'onion_data.yaml'; give any of data,"),
    ],
)
def test_a_mistake_in_an_entry_is_named(tmp_path: Path, entry: Any, said: str) -> None:
    with pytest.raises(InputError) as error:
        stub_grid(tmp_path / "grid.yaml", x=entry)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_the_grid_written_out_spans_the_same_cells(tmp_path: Path) -> None:
    both = {"data": LOOKING, "repair": CALLBACK}
    grid = stub_grid(tmp_path / "grid.yaml", none=None, both=both, **REPAIRED)
    (tmp_path / "again.yaml").write_text(grid.as_yaml(), encoding="utf-8")
    assert Grid(tmp_path / "again.yaml").cells == grid.cells


def test_a_repaired_victim_is_trained_once_and_serves_two_inference_defenses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = stub_grid(tmp_path / "grid.yaml", 1, 0, 1, **REPAIRED).cells
    repaired = cells[0].victim
    assert repaired.parent is not None
    commands = run(tmp_path, monkeypatch, cells)
    assert commands.ids("fit") == [repaired.parent.id, repaired.id]
    assert commands.ids("test") == [cell.id for cell in cells]
    _, _, config = commands.given[1]
    checkpoint = tmp_path / "victims" / repaired.parent.id / "checkpoints" / "best.ckpt"
    assert config["model"]["init_args"]["published"] == str(checkpoint)
    assert not run(tmp_path, monkeypatch, cells, "two").given


def test_a_cleaned_victim_is_given_the_checkpoint_that_it_looks_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (cell,) = stub_grid(tmp_path / "grid.yaml", 1, 0, 1, looking={"data": LOOKING, "repair": CALLBACK}).cells
    commands = run(tmp_path, monkeypatch, [cell])
    undefended, cleaned, repaired = commands.ids("fit")
    (_, _, first), (_, _, second), (_, _, third) = commands.given[:3]
    assert "victim" not in first["data"].get("init_args", {})
    assert second["data"]["init_args"]["victim"] == str(tmp_path / f"victims/{undefended}/checkpoints/best.ckpt")
    assert third["model"]["init_args"]["published"] == str(tmp_path / f"victims/{cleaned}/checkpoints/best.ckpt")
    assert repaired == cell.victim.id


def test_the_row_is_made_from_the_cleaning_of_the_victim_or_its_parent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []

    def measured(metrics: Any, outcomes: Any, cleaning: Any = None) -> dict[str, Any]:
        given.append(cleaning)
        return {"cacc": metrics["test/cacc"]}

    monkeypatch.setattr("lightning_backdoor.benchmark.table.measured", measured)
    defenses = {"cleaned": {"data": CLEANING}, "both": {"data": CLEANING, "repair": CALLBACK}, **REPAIRED}
    run(tmp_path, monkeypatch, stub_grid(tmp_path / "grid.yaml", 1, 1, 1, **defenses).cells)
    record = {"rows": 100, "removed": 7, "changed": 0, "precision": 0.5, "recall": None}
    assert given == [None, record, record, None, None]


def test_a_parent_that_fails_fails_what_needs_it_and_is_tried_once_per_launch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = stub_grid(tmp_path / "grid.yaml", 2, 0, 1, none=None, cleaned={"data": CLEANING}, **REPAIRED)
    commands = run(tmp_path, monkeypatch, grid.cells, fails="number: 1\n")
    lost = [cell for cell in grid.cells if cell.attack == "attack 1"]
    assert commands.ids("fit").count(lost[0].victim.id) == 1
    rows = {row["cell"]: row["error"] for row in write_results(grid, tmp_path, "").rows}
    needed = "it needs the victim texts · stub · attack 1 · seed 0, which failed: no memory"
    assert [rows[cell.id] for cell in lost] == [
        "victim: no memory",
        "victim: no memory",
        f"victim: {needed}",
        f"victim: {needed}",
    ]
    assert not any(rows[cell.id] for cell in grid.cells if cell.attack == "attack 0")
    again = run(tmp_path, monkeypatch, grid.cells, "two")
    assert len(again.ids("fit")) == 3
    assert {*again.ids("test")} == {cell.id for cell in lost}


def test_while_another_worker_trains_the_parent_the_child_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = stub_grid(tmp_path / "grid.yaml", 1, 0, 1, **REPAIRED).cells
    parent = cells[0].victim.parent
    assert parent is not None
    slept: list[float] = []

    def released(seconds: float) -> None:
        if seconds == PATIENCE:
            slept.append(seconds)
            other.close()

    other = ExitStack()
    other.enter_context(claimed(tmp_path / "victims" / parent.id / "log.txt"))
    monkeypatch.setattr("lightning_backdoor.benchmark.running.worker.time.sleep", released)
    commands = run(tmp_path, monkeypatch, cells)
    assert len(slept) == 1
    assert commands.ids("fit") == [parent.id, cells[0].victim.id]


def test_plan_and_progress_name_every_victim_that_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = stub_grid(tmp_path / "grid.yaml", 1, 0, 1, **REPAIRED).cells
    journal = Journal(tmp_path / "journal.jsonl")
    plan = plan_text(cells, journal, 1)
    assert plan.startswith("2 cells, 2 victims\n")
    assert plan.count("  texts · stub · attack 0 · seed 0\n  texts · stub · attack 0 under repaired · seed 0\n") == 1
    progress = Progress(cells, journal)
    run(tmp_path, monkeypatch, cells)
    progress.look()
    lines = capsys.readouterr().out.splitlines()
    assert sum(": trained (" in line for line in lines) == 2
    assert f"[1/2] {cells[0].label}: running, log: {tmp_path}/cells/{cells[0].id}/log.txt" in lines
    victim = cells[0].victim
    assert f"      {victim.label}: training, log: {tmp_path}/victims/{victim.id}/log.txt" in lines
    assert progress.left() == 0
    assert "victims to be trained:\n  none\nnothing is left to run\n" in plan_text(cells, journal, 1)


def test_the_time_that_is_left_is_told_by_the_defense(tmp_path: Path) -> None:
    cells = stub_grid(tmp_path / "grid.yaml", attacks=2, defenses=2, seeds=1).cells
    journal = Journal(tmp_path / "journal.jsonl")
    assert time_left(cells, journal) is None
    for victim in all_victims(cells):
        journal.append("victim", victim, seconds=100.0, digest="")
    seconds = {defense: 10.0 ** (i + 1) for i, defense in enumerate(dict.fromkeys(c.names["defense"] for c in cells))}
    first, second = ([cell for cell in cells if cell.names["attack"] == f"attack {i}"] for i in (0, 1))
    for cell in first:
        journal.append("cell", cell.id, seconds=seconds[cell.names["defense"]], row={})
    journal.refresh()
    assert time_left(cells, journal) == (sum(seconds[cell.names["defense"]] for cell in second), False)
    assert time_left(second, journal) is None
    journal.append("cell", second[0].id, seconds=7.0, row={})
    journal.refresh()
    assert time_left(second, journal) == (7.0 * len(second[1:]), True)


def test_a_cell_is_checked_without_what_its_victim_takes_from_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked: list[Fragment] = []
    monkeypatch.setattr(
        "lightning_backdoor.commands.fit.check",
        lambda args, kept, as_published: checked.append(yaml.safe_load(Path(args[1]).read_text(encoding="utf-8"))),
    )
    broken = {"data_defense": {"class_path": "lightning_backdoor.defenses.onion.Onion", "init_args": {"fpr": "much"}}}
    cells = cells_by_defense(
        tmp_path,
        broken={"data": {"data": {"init_args": {**broken, "victim": "undefended"}}}},
        **{"broken and repaired": {"data": {"data": {"init_args": {**broken, "victim": "undefended"}}}, "repair": {}}},
        **REPAIRED,
    )
    check_cell(cells["repaired"], Kept())
    assert [config["data"].get("init_args", {}).get("train_on") for config in checked] == [None, "trusted"]
    assert not any("published" in config["model"].get("init_args", {}) for config in checked)
    for name in ("broken", "broken and repaired"):
        with pytest.raises(InputError, match=r"data_defense: .*fpr"):
            check_cell(cells[name], Kept())


def test_an_empty_repair_is_plain_fine_tuning_of_the_undefended_victim(tmp_path: Path) -> None:
    cells = cells_by_defense(tmp_path, repaired={"repair": {}, "inference": CALLBACK})
    parent = cells["none"].victim
    victim = cells["repaired"].victim
    assert victim.parent == parent
    assert victim.training == "repaired"
    assert victim.config["model"]["init_args"]["published"] == parent.id


def test_the_parent_of_a_victim_is_named_in_its_config_alone(tmp_path: Path) -> None:
    victims: dict[str, PlannedVictim] = all_victims(
        cells_by_defense(tmp_path, looking={"data": LOOKING}, **REPAIRED).values()
    )
    arguments = [victim.parent_argument for victim in victims.values()]
    assert arguments == [("", ""), ("data", "victim"), ("model", "published")]
