"""One grid of the presets of all defenses, new ones by themselves, against one attack, on tiny models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_backdoor.benchmark.grid import Grid, PlannedVictim, all_victims
from lightning_backdoor.benchmark.running.worker import Worker
from lightning_backdoor.benchmark.write_results import write_results
from lightning_backdoor.cli import main
from lightning_backdoor.files.public_classes import public_classes
from tests.benchmark.grids import SMALL
from tests.language.conftest import language_model

__all__ = ["language_model"]

PRESETS = {path.stem: path for path in sorted((Path(__file__).parents[2] / "configs" / "defense").glob("*.yaml"))}
KEYS = {
    "before training": "data",
    "in training": "training",
    "after training": "repair",
    "at inference": "inference",
    "on the trained model": "inspection",
}
MOMENTS = {item.name: item.moments for item in public_classes() if item.kind == "defenses"}
#: arguments, by class, without which a defense is too large for a tiny model and few rows.
SMALLER: dict[str, dict[str, Any]] = {
    "BKI": {"keywords": 1, "top": 1},
    "DBS": {"trigger_length": 2, "rows": 4, "epochs": 3, "places": ["start"]},
    "FinePruning": {"layers": 1},
    "MuScleLoRA": {"reference_size": 4},
    "Onion": {"language_model": "language"},
    "ParaphraseConsistency": {"paraphraser": {"class_path": "tests.defenses.test_paraphrase_consistency.Reversed"}},
    "SecondOpinion": {"encoder": "language"},
}


def smaller(part: Any) -> Any:
    """A preset with the arguments above."""
    if isinstance(part, list):
        return [smaller(entry) for entry in part]
    if not isinstance(part, dict):
        return part
    result = {name: smaller(value) for name, value in part.items()}
    name = str(part.get("class_path", "")).rpartition(".")[2]
    if name in SMALLER:
        result["init_args"] = {**result.get("init_args", {}), **SMALLER[name]}
    return result


def key_of(preset: Mapping[str, Any]) -> str:
    """The key of a preset in a grid's entry."""
    if "data_defense" in preset.get("data", {}).get("init_args", {}):
        return "data"
    callbacks = preset["trainer"].get("callbacks+", [])
    if not callbacks:
        return "repair"
    name = callbacks[0]["class_path"].rpartition(".")[2]
    attached = {"InferenceDefense": "inference", "InspectionCallback": "inspection"}
    return attached[name] if name in attached else KEYS[MOMENTS[name][0]]


def entry_of(path: Path) -> dict[str, Any]:
    """The entry of a preset in the grid, two epochs long where it trains."""
    preset = smaller(yaml.safe_load(path.read_text(encoding="utf-8")))
    if "max_epochs" in preset.get("trainer", {}):
        preset["trainer"]["max_epochs"] = 2
    return {key_of(preset): preset}


ENTRIES = {name: entry_of(path) for name, path in PRESETS.items()}


@pytest.fixture(scope="module")
def grid(workspace: Path, language_model: Callable[[str], str]) -> Path:
    content = yaml.safe_load(SMALL)
    del content["attacks"]["none"]
    content["base"]["data"]["init_args"]["max_rows"] = {"train": 96, "validation": 40, "test": 24}
    content["defenses"] = {"none": None, **ENTRIES}
    (workspace / "language").symlink_to(language_model("llama"))
    path = workspace / "every.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path


def victims_of(path: Path) -> dict[str, PlannedVictim]:
    return all_victims(Grid(path).cells)


def test_there_is_a_preset_for_each_moment() -> None:
    assert {key for entry in ENTRIES.values() for key in entry} == {*KEYS.values()}


def test_the_plan_has_one_undefended_victim_for_all_that_need_it(
    grid: Path, inside: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Data defenses that look through it, repairs, and defenses of a trained model share it."""
    assert main(["benchmark", "--config", str(grid), "--output", "plan", "--dry-run"]) == 0
    trained = [name for name, entry in ENTRIES.items() if entry.keys() & {"data", "training", "repair"}]
    victims = victims_of(grid)
    said = capsys.readouterr().out
    assert f"{len(ENTRIES) + 1} cells, {len(trained) + 1} victims" in said
    assert sorted(victim.training for victim in victims.values()) == sorted(["", *trained])
    undefended = next(victim for victim in victims.values() if not victim.training)
    parents = {victim.training: victim.parent for victim in victims.values() if victim.parent}
    looking = {
        name
        for name in trained
        if "victim" in ENTRIES[name].get("data", {"data": {"init_args": {}}})["data"]["init_args"]
    }
    assert parents == dict.fromkeys({name for name in trained if "repair" in ENTRIES[name]} | looking, undefended)


def test_every_preset_runs(grid: Path, inside: Path) -> None:
    planned = Grid(grid)
    folder = inside / "every"
    folder.mkdir()
    Worker(folder, planned.cells, "launch").run()
    rows = {row["defense"]: row for row in write_results(planned, folder, "").rows}
    assert not [f"{name}: {row['error']}" for name, row in rows.items() if row["error"]]
    assert rows.keys() >= ENTRIES.keys()
    measures = {"data": "cleaning_removed", "inference": "auroc", "inspection": "inspection_score"}
    for name, entry in ENTRIES.items():
        (key,) = entry
        assert rows[name][measures.get(key, "asr")] != "", name
