"""The grid's file: what its axes mean, what they span, and what is said of a mistake."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_backdoor.benchmark.fragments import compose
from lightning_backdoor.benchmark.grid import CLEAN_TRAINING, Grid, select
from lightning_backdoor.errors import InputError
from tests.benchmark.grids import SMALL, stub_grid


def grid(tmp_path: Path, **changes: Any) -> Grid:
    content = {**yaml.safe_load(SMALL), **changes}
    path = tmp_path / "grid.yaml"
    content = {key: value for key, value in content.items() if value != "absent"}
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return Grid(path)


def test_a_victim_is_shared_by_its_inference_defenses_and_the_benign_one_is_every_attacks_control(
    tmp_path: Path,
) -> None:
    cells = grid(tmp_path).cells
    assert [(cell.attack, cell.defense) for cell in cells] == [
        ("none", "none"),
        ("none", "gradient attention"),
        ("BadNets", CLEAN_TRAINING),
        ("BadNets", "none"),
        ("BadNets", "gradient attention"),
    ]
    victims = [cell.victim.id for cell in cells]
    assert victims[0] == victims[1] == victims[2] != victims[3] == victims[4]
    assert len({cell.id for cell in cells}) == 5
    control = cells[2].config["model"]
    assert control["class_path"] == "lightning_backdoor.attacks.BadNets"


def test_a_training_time_defense_makes_another_victim(tmp_path: Path) -> None:
    muscle = {"class_path": "lightning_backdoor.callbacks.MuScleLoRA"}
    strip = {"class_path": "lightning_backdoor.defenses.strip.Strip"}
    both = {"training": muscle, "inference": strip}
    cells = grid(tmp_path, defenses={"none": None, "MuScleLoRA": {"training": muscle}, "both": both}).cells
    of_attack = {cell.defense: cell for cell in cells if cell.attack == "BadNets"}
    assert of_attack["none"].victim.id != of_attack["MuScleLoRA"].victim.id == of_attack["both"].victim.id
    assert of_attack["MuScleLoRA"].victim.config["trainer"]["callbacks"] == [muscle]
    trained_under, attached = of_attack["both"].config["trainer"]["callbacks"]
    assert trained_under == muscle  # without which its checkpoint is refused
    assert attached["class_path"].endswith("InferenceDefense")
    assert attached["init_args"] == {"defense": strip}


@pytest.mark.parametrize("several", [True, False])
def test_a_single_callback_of_the_base_stays_beside_a_defense(tmp_path: Path, several: bool) -> None:
    stopping = {"class_path": "lightning.pytorch.callbacks.EarlyStopping", "init_args": {"monitor": "val/loss"}}
    base = {"trainer": {"callbacks": [stopping] if several else stopping}}
    cell = grid(tmp_path, base=base).cells[1]
    given, attached = cell.config["trainer"]["callbacks"]
    assert given == stopping
    assert attached["class_path"].endswith("InferenceDefense")


def test_later_entries_win_and_presets_are_read_from_the_grids_own_folder(tmp_path: Path) -> None:
    (tmp_path / "presets").mkdir()
    preset = {"model": {"class_path": "shout.Shout", "init_args": {"learning_rate": 0.1}}, "trainer": {"max_epochs": 9}}
    (tmp_path / "presets" / "shout.yaml").write_text(yaml.safe_dump(preset), encoding="utf-8")
    (cell, _) = grid(tmp_path, attacks={"Shout": "presets/shout.yaml"}).cells
    assert cell.victim.config["model"]["init_args"] == {"model": "model", "learning_rate": 0.1}
    assert cell.victim.config["trainer"]["max_epochs"] == 9
    assert cell.victim.config["trainer"]["devices"] == 1


@pytest.mark.parametrize("key", ["callbacks", "callbacks+"])
@pytest.mark.parametrize("several", [True, False])
def test_a_preset_that_names_its_callback_logs_without_that_name_beside_the_callbacks_of_training(
    tmp_path: Path, key: str, several: bool
) -> None:
    stopping = {"class_path": "lightning.pytorch.callbacks.EarlyStopping", "init_args": {"monitor": "val/loss"}}
    named = {"class_path": "lightning_backdoor.callbacks.InferenceDefense", "init_args": {"name": "mine", "texts": 3}}
    defenses = {"mine": {"inference": {"trainer": {key: [named] if several else named}}}}
    cell = grid(tmp_path, defenses=defenses, base={"trainer": {"callbacks": [stopping]}}).cells[0]
    assert cell.config["trainer"]["callbacks"] == [stopping, {**named, "init_args": {"texts": 3}}]


def test_excluded_cells_are_left_out(tmp_path: Path) -> None:
    cells = grid(tmp_path, seeds=[0, 1], exclude=[{"attack": "none", "defense": "gradient attention", "seed": 1}]).cells
    places = [(cell.attack, cell.defense, cell.victim.seed) for cell in cells]
    assert ("none", "gradient attention", 0) in places
    assert ("none", "gradient attention", 1) not in places
    assert ("BadNets", "gradient attention", 1) in places
    cells = grid(tmp_path, exclude=[{"attack": "BadNets", "defense": CLEAN_TRAINING}]).cells
    assert CLEAN_TRAINING not in {cell.defense for cell in cells}


def test_the_grid_written_out_spans_the_same_cells(tmp_path: Path) -> None:
    first = grid(tmp_path, exclude=[{"attack": ["none"], "defense": "gradient attention"}])
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "grid.yaml").write_text(first.as_yaml(), encoding="utf-8")
    assert Grid(tmp_path / "elsewhere" / "grid.yaml").cells == first.cells


def test_what_a_run_reads_is_part_of_its_identity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "own").mkdir()

    def ids() -> set[str]:
        return {cell.id for cell in grid(tmp_path, attacks={"own": {"class_path": "own.attack.Mine"}}).cells}

    seen = ids()
    for name in ("data.csv", "model/config.json", "own/attack.py"):
        for content in ("one", "two"):
            (tmp_path / name).write_text(content, encoding="utf-8")
            assert not ids() & seen, (name, content)
            seen |= ids()
    (tmp_path / "lightning_backdoor").mkdir()  # as in a clone of this repository
    (tmp_path / "lightning_backdoor" / "victim.py").write_text("the same library", encoding="utf-8")
    (tmp_path / "cpu").write_text("nothing that a run reads", encoding="utf-8")
    assert ids() <= seen


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seed": [1]}, "'seed' is unknown; give datasets,"),
        ({"attacks": "absent"}, "attacks is None; give names"),
        ({"attacks": {"x": 3}}, "attacks.x is 3; give the path"),
        ({"attacks": {"x": {"loss": 3}}}, "attacks.x is {'loss': 3}; give the path"),
        ({"attacks": {"x": "no.yaml"}}, "no.yaml cannot be read"),
        (
            {"attacks": {"x": {"class_path": "a.B", "init_args": [1]}}},
            "attacks.x is {'class_path': 'a.B', 'init_args': [1]}; give names and values as init_args",
        ),
        ({"models": {"x": {"model": {"init_args+": [1]}}}}, "models.x.model is {'init_args+': [1]}; give names"),
        (
            {"defenses": {"x": {"inference": {"class_path": "a.B", "init_args": "fpr"}}}},
            "defenses.x.inference is {'class_path': 'a.B', 'init_args': 'fpr'}; give names and values as init_args",
        ),
        (
            {"defenses": {"x": {"class_path": "a.B"}}},
            "defenses.x is {'class_path': 'a.B'}; give any of data, training, repair, inference, inspection",
        ),
        ({"defenses": {CLEAN_TRAINING: None}}, "give another name"),
        (
            {"defenses": {"undefended": None}},
            "defenses.undefended is {}; the entry without a defense, and no other, is none",
        ),
        ({"defenses": {"none": {"inference": {"class_path": "a.B"}}}}, "defenses.none is"),
        ({"attacks": {"a": {"class_path": "x.Y"}, "b": {"class_path": "x.Y"}}}, "are the same; leave one out"),
        ({"seeds": 3}, "seeds is 3, which may mean the seed 3 or 3 seeds; give [3] for the seed, or [0, 1, 2]"),
        ({"seeds": 42}, "the seed 42 or 42 seeds; give [42] for the seed, or [0, 1, ..., 41]"),
        ({"seeds": 0}, "seeds is 0, not a list with a seed; give a list of different whole numbers, such as [0, 1, 2]"),
        ({"seeds": True}, "seeds is True, not a list with a seed"),
        ({"seeds": None}, "seeds is None, not a list with a seed"),
        ({"seeds": "0-4"}, "seeds is '0-4', not a list with a seed"),
        ({"seeds": {"from": 0}}, "seeds is {'from': 0}, not a list with a seed"),
        ({"seeds": []}, "seeds is [], not a list with a seed"),
        ({"seeds": [1, 2, 1]}, "seeds has the seed 1 more than once; give each seed once"),
        ({"seeds": ["one"]}, "seeds has 'one', which is not a whole number"),
        ({"seeds": [True]}, "seeds has True, which is not a whole number"),
        ({"seeds": [1.0]}, "seeds has 1.0, which is not a whole number"),
        ({"seeds": [[0, 1]]}, "seeds has [0, 1], which is not a whole number"),
        ({"seeds": [0, -1]}, "seeds has -1, which is not from 0 to 4294967295; give another seed"),
        ({"seeds": [2**32]}, "seeds has 4294967296, which is not from 0 to"),
        ({"exclude": [{"attack": "Badnets"}]}, "exclude names an unknown attack: Badnets; the grid has BadNets, none"),
        ({"exclude": [{"trigger": "cf"}]}, "exclude has {'trigger': 'cf'}; give dataset"),
        ({"exclude": [{"dataset": "reviews"}]}, "exclude leaves no cell"),
        ({"wandb": "mine"}, "wandb is 'mine'; give names and values"),
    ],
)
def test_a_mistake_is_named_with_its_key_and_value(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as error:
        grid(tmp_path, **changes)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("no: {class_path: a.B}", "the name False is not text: quote it"),
        ("one: {class_path: a.B}\n  one: {class_path: a.C}", "the name one is given twice"),
        ("1: {class_path: a.B}\n  '1': {class_path: a.C}", "the name 1 is given twice"),
        ("[1, 2", "is not YAML"),
    ],
)
def test_what_yaml_takes_in_silence_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "grid.yaml").write_text(f"attacks:\n  {text}\n", encoding="utf-8")
    with pytest.raises(InputError, match=said):
        Grid(tmp_path / "grid.yaml")


def test_a_null_attack_is_the_benign_victim_and_dates_are_text(tmp_path: Path) -> None:
    attacks = {"clean": None, "dated": {"class_path": "x.Y", "init_args": {"revision": "2024-01-01", 3: "three"}}}
    found = grid(tmp_path, attacks=attacks)
    assert found.benign == "clean"
    assert CLEAN_TRAINING in {cell.defense for cell in found.cells}
    assert found.cells[-1].victim.config["model"]["init_args"]["revision"] == "2024-01-01"


def test_public_classes_may_be_given_by_their_names(tmp_path: Path) -> None:
    """In entries, in presets, in nested arguments and among callbacks, with the same ids as by their class paths."""
    strip = {"class_path": "lightning_backdoor.defenses.Strip"}
    callback = "lightning_backdoor.callbacks.GradientAttentionDefense"
    entries = {
        "models": {"tiny": {"model": {"class_path": "lightning_backdoor.victim.TextClassifier"}}},
        "attacks": {
            "clean": {"class_path": "lightning_backdoor.victim.TextClassifier"},
            "BadNets": {"class_path": "lightning_backdoor.attacks.BadNets", "init_args": {"triggers": ["cf"]}},
            "preset": "attack.yaml",
        },
        "defenses": {
            "none": None,
            "strip": {"inference": strip},
            "onion": {"data": {"class_path": "lightning_backdoor.defenses.Onion", "init_args": {"inner": [strip]}}},
            "callback": {"inference": {"trainer": {"callbacks+": [{"class_path": callback}]}}},
        },
    }
    preset = yaml.safe_dump({"model": {"class_path": "lightning_backdoor.attacks.Ripples", "init_args": {}}})
    (tmp_path / "attack.yaml").write_text(preset, encoding="utf-8")
    by_path = grid(tmp_path, **entries)
    text = yaml.safe_dump(entries, sort_keys=False).replace(f"class_path: {callback}", callback)
    short = re.sub(r"lightning_backdoor\.\w+\.(?=\w)", "", text)
    (tmp_path / "attack.yaml").write_text(preset.replace(".attacks.", "."), encoding="utf-8")
    by_name = grid(tmp_path, **yaml.safe_load(short))
    assert by_name.benign == "clean"
    assert [cell.id for cell in by_name.cells] == [cell.id for cell in by_path.cells]
    assert by_name.as_yaml() == by_path.as_yaml()


@pytest.mark.parametrize("given", ["TextClassifier", "lightning_backdoor.victim.classifier.TextClassifier"])
def test_a_benign_victim_is_known_by_any_name_of_its_class(tmp_path: Path, given: str) -> None:
    found = grid(tmp_path, attacks={"clean": {"class_path": given}, "BadNets": {"class_path": "BadNets"}})
    assert found.benign == "clean"
    assert CLEAN_TRAINING in {cell.defense for cell in found.cells}


def test_a_class_takes_over_no_arguments_of_another(tmp_path: Path) -> None:
    below = {"data": {"init_args": {"data_defense": {"class_path": "a.Onion", "init_args": {"fpr": 0.2}}}}}
    above = {"data": {"init_args": {"data_defense": {"class_path": "a.Strip", "init_args": {"copies": 3}}}}}
    made = compose(below, above)["data"]["init_args"]["data_defense"]
    assert made == {"class_path": "a.Strip", "init_args": {"copies": 3}}
    model = compose({"model": {"class_path": "a.B", "init_args": {"model": "m"}}}, {"model": {"class_path": "a.C"}})
    assert model["model"] == {"class_path": "a.C", "init_args": {"model": "m"}}


def test_conditions_choose_cells_and_unknown_ones_are_said(tmp_path: Path) -> None:
    cells = grid(tmp_path, seeds=[0, 1]).cells
    chosen = select(cells, ["attack=BadNets", "defense=none,gradient attention", "seed=1"])
    assert [(cell.defense, cell.victim.seed) for cell in chosen] == [("none", 1), ("gradient attention", 1)]
    for condition in ("attack=RAP", "attack=BadNets,RAP"):
        with pytest.raises(InputError, match=f"'{condition}' fits no cell by 'RAP'; there is none, BadNets"):
            select(cells, [condition])
    with pytest.raises(InputError, match=r"'attack=BadNet' fits no cell by 'BadNet'; did you mean BadNets\?"):
        select(cells, ["attack=BadNet"])
    with pytest.raises(InputError, match="'trigger=cf' is not a condition; give KEY=NAME, where KEY is dataset, model"):
        select(cells, ["trigger=cf"])


def test_names_with_commas_are_chosen_with_others(tmp_path: Path) -> None:
    attacks = {name: {"class_path": name} for name in ("BadNets", "BadNets, twice", "AddSent")}
    cells = grid(tmp_path, attacks={"none": None, **attacks}).cells
    chosen = select(cells, ["attack=BadNets, twice,AddSent"])
    assert {cell.attack for cell in chosen} == {"BadNets, twice", "AddSent"}


def test_two_thousand_cells_are_planned_in_two_seconds(tmp_path: Path) -> None:
    seconds = []
    for _ in range(3):  # other processes may take the machine meanwhile
        started = time.perf_counter()
        cells = stub_grid(tmp_path / "grid.yaml", attacks=10, defenses=10, seeds=20).cells
        seconds.append(time.perf_counter() - started)
    assert len({cell.id for cell in cells}) == 2000
    assert len({cell.victim.id for cell in cells}) == 200
    assert min(seconds) < 2
