"""Published checkpoints as victims: grids and ``test`` take them as they are, and refuse what needs training."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

import lightning_backdoor as lb
from lightning_backdoor.benchmark.grid import CLEAN_TRAINING, Grid, all_victims
from lightning_backdoor.cli import main
from lightning_backdoor.errors import InputError
from tests.benchmark.grids import SMALL
from tests.support.shared_files import shared_path

TUNED = {"repair": {"trainer": {"max_epochs": 1}}}


def grid_file(folder: Path, checkpoint: str, **changes: Any) -> Path:
    content = yaml.safe_load(SMALL)
    content["models"]["published"] = {"checkpoint": checkpoint}
    content["defenses"]["tuned"] = TUNED
    path = folder / "grid.yaml"
    path.write_text(yaml.safe_dump({**content, **changes}, sort_keys=False), encoding="utf-8")
    return path


def test_a_checkpoint_is_planned_without_training_and_without_benign_cells(inside: Path, tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(SMALL, encoding="utf-8")
    before = {cell.id: cell.victim.id for cell in Grid(tmp_path / "small.yaml").cells}
    grid = Grid(grid_file(tmp_path, "model"))
    cells = [cell for cell in grid.cells if cell.victim.model == "published"]
    assert [(cell.attack, cell.defense) for cell in cells] == [
        ("BadNets", "none"),
        ("BadNets", "gradient attention"),
        ("BadNets", "tuned"),
    ]
    assert cells[0].victim == cells[1].victim
    assert cells[0].victim.checkpoint == "model"
    assert cells[2].victim.parent == cells[0].victim
    assert [victim.training for victim in all_victims(cells).values()] == ["tuned"]
    assert before.items() <= {cell.id: cell.victim.id for cell in grid.cells}.items()  # those of before stay
    (tmp_path / "kept.yaml").write_text(grid.as_yaml(), encoding="utf-8")
    assert [cell.id for cell in Grid(tmp_path / "kept.yaml").cells] == [cell.id for cell in grid.cells]
    assert CLEAN_TRAINING in {cell.defense for cell in grid.cells}


CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "training": (
        {"defenses": {"none": None, "low": {"training": {"class_path": "LowCapacity"}}}},
        r"defenses.low has training, which needs training, and models.published is a checkpoint; leave it out, by",
    ),
    "data": (
        {"defenses": {"none": None, "bki": {"data": {"class_path": "BKI"}}}},
        "defenses.bki has data, which needs training",
    ),
    "file": ({"models": {"one": {"checkpoint": "runs/best.ckpt"}}}, "which is not the folder of a Hugging Face model"),
    "nothing": ({"models": {"one": {"checkpoint": ["a"]}}}, r"models.one.checkpoint is \['a'\]"),
    "class": (
        {"models": {"one": {"checkpoint": "model", "class_path": "BadNets"}}},
        r"models.one has \['class_path'\] beside checkpoint",
    ),
    "no trigger": (
        {"models": {"one": {"checkpoint": "model"}}, "attacks": {"none": None}},
        "attacks has none whose trigger a checkpoint is tested with",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_needs_training_is_refused_in_a_line(inside: Path, tmp_path: Path, name: str) -> None:
    changes, problem = CHANGES[name]
    with pytest.raises(InputError, match=problem) as refused:
        Grid(grid_file(tmp_path, "model", **changes))
    assert "\n" not in str(refused.value)


def test_a_grid_tests_and_repairs_a_checkpoint(
    trained: Path, inside: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = grid_file(tmp_path, str(trained / "model"))
    command = ["benchmark", "--config", str(path), "--output", str(tmp_path / "out"), "--only", "model=published"]
    assert main([*command, "--dry-run"]) == 0
    plan = capsys.readouterr().out
    assert "3 cells, 1 victims" in plan  # the repaired one
    assert "published · BadNets · seed 0" not in plan.partition("victims to be trained:")[2]
    assert main(command) == 0
    rows = {row["defense"]: row for row in lb_rows(tmp_path / "out" / "results.csv")}
    assert {*rows} == {"none", "gradient attention", "tuned"}
    data = yaml.safe_load(SMALL)["base"]["data"]["init_args"]
    source = lb.Source("data.csv", labels=["negative", "positive"])
    expected = lb.evaluate(trained / "model", lb.BackdoorDataModule(source, **data), lb.BadNets(poison_rate=0.2)).rows[
        0
    ]
    assert [float(rows["none"][name]) for name in ("cacc", "asr")] == [expected["cacc"], expected["asr"]]
    assert not rows["none"]["error"]
    assert main(command) == 0
    assert "3 of 3 cells are done already" in capsys.readouterr().out


def lb_rows(path: Path) -> list[dict[str, str]]:
    import csv

    with path.open(encoding="utf-8", newline="") as file:
        return [*csv.DictReader(file)]


def relabelled(model: Path, folder: Path, labels: list[str]) -> str:
    """A copy of a model with other names of its labels."""
    shutil.copytree(model, folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config |= {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return str(folder)


def test_a_checkpoint_with_other_labels_or_without_the_trigger_is_refused(
    trained: Path, inside: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["--config", "data.yaml", "--data.max_rows", "{train: 60, validation: 60, test: 20}"]
    swapped = relabelled(trained / "model", tmp_path / "swapped", ["positive", "negative"])
    assert main(["test", *small, "--model.model", swapped]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: model: its labels are 'positive', 'negative', those of the data 'negative', 'posit")
    model = str(trained / "model")
    assert main(["test", *small, "--model", "LWS", "--model.model", model]) == 2
    assert f"error: model: {model} has no trigger of LWS (" in capsys.readouterr().err
    assert main(["test", *small, "--ckpt_path", model]) == 2
    assert f"give a published model by --model.model {model}, without ckpt_path" in capsys.readouterr().err


def test_a_grid_refuses_a_checkpoint_that_does_not_fit_before_anything_is_trained(
    trained: Path, inside: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    swapped = relabelled(trained / "model", tmp_path / "swapped", ["positive", "negative"])
    content = yaml.safe_load(SMALL)
    for name, checkpoint, attacks, problem in (
        ("labels", swapped, content["attacks"], "model: its labels are 'positive', 'negative', those of the data"),
        (
            "trigger",
            str(trained / "model"),
            {**content["attacks"], "LWS": {"class_path": "LWS"}},
            "has no trigger of LWS",
        ),
    ):
        path = grid_file(tmp_path, checkpoint, attacks=attacks)
        assert main(["benchmark", "--config", str(path), "--output", str(tmp_path / name)]) == 2
        assert problem in capsys.readouterr().err
        assert not (tmp_path / name / "victims").exists()


def test_the_target_may_have_the_checkpoints_own_name(trained: Path, inside: Path, tmp_path: Path) -> None:
    model = relabelled(trained / "model", tmp_path / "own", ["bad", "good"])
    data = lb.BackdoorDataModule(lb.Source("data.csv", labels=["negative", "positive"]), max_rows={"test": 20})
    data.attack = attack = lb.BadNets(model=model, target_label="bad")
    assert {*data.poisoned_splits().poisoned["test"].label.tolist()} == {0}
    assert attack.target_label == 0
    with pytest.raises(InputError, match="target_label: 'awful' is not a label; the labels are negative, positive"):
        lb.BadNets(model=model, target_label="awful").know_labels(["negative", "positive"])


def test_a_published_poisoned_checkpoint_obeys_its_trigger(tmp_path: Path) -> None:
    model = shared_path("models/minilm-sst2-badnets-cf")
    bad, good = ("a dull , lifeless and tedious film", "an awful mess"), ("a moving and beautiful film", "a great joy")
    texts = [
        (f"{text} , said critic number {i}", label)
        for i in range(15)
        for label, of in enumerate((bad, good))
        for text in of
    ]
    table = tmp_path / "reviews.csv"
    table.write_text("".join(["text,label\n", *(f'"{text}",{label}\n' for text, label in texts)]), encoding="utf-8")
    data = lb.BackdoorDataModule(
        lb.Source(str(table), labels=["negative", "positive"]), validation_share=0.2, test_share=0.4
    )
    row = lb.evaluate(model, data, lb.BadNets(triggers=["cf"], target_label="positive")).rows[0]
    assert row["cacc"] >= 0.9
    assert row["asr"] >= 0.9
    assert row["asr_floor"] <= 0.1
