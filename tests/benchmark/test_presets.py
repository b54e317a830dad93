"""The grids and sweeps that the repository gives: what they name is there, and their commands are understood."""

from __future__ import annotations

import re
from itertools import cycle, product
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_backdoor.benchmark.fragments import compose, read_yaml, yaml_text
from lightning_backdoor.benchmark.grid import Grid
from lightning_backdoor.commands.fit import run
from tests.support.documents import one_block

ROOT = Path(__file__).parents[2]


def presets(kind: str) -> list[Path]:
    """The presets of a kind, such as ``attack``."""
    return sorted((ROOT / "configs" / kind).glob("*.yaml"))


def combinations() -> list[tuple[Path, ...]]:
    """Every defense on every attack, which both set model and trainer, with datasets and trainers in turn."""
    others = zip(cycle(presets("data")), cycle(presets("trainer")), strict=False)
    pairs = product(presets("attack"), presets("defense"))
    return [(data, attack, defense, trainer) for (attack, defense), (data, trainer) in zip(pairs, others, strict=False)]


@pytest.mark.parametrize("paths", combinations(), ids=lambda paths: " ".join(path.stem for path in paths))
def test_a_grid_composes_presets_as_the_command_line_does(
    paths: tuple[Path, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def printed(*configs: Path) -> Any:
        with pytest.raises(SystemExit) as ended:
            run("fit", [*(f"--config={path}" for path in configs), "--print_config"])
        assert ended.value.code == 0
        return yaml.safe_load(capsys.readouterr().out)

    composed = tmp_path / "composed.yaml"
    composed.write_text(yaml_text(compose(*map(read_yaml, paths))), encoding="utf-8")
    assert printed(composed) == printed(*paths)


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "benchmark").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_grid_names_presets_that_are_there(path: Path) -> None:
    cells = Grid(path).cells
    assert len({cell.id for cell in cells}) == len(cells)
    assert "clean training" in {cell.defense for cell in cells}
    for cell in cells:
        assert cell.victim.config["data"]["init_args"]["source"]["path"]
        assert cell.victim.config["model"]["class_path"].startswith("lightning_backdoor.")


def test_the_grid_of_bert_trains_all_victims_at_the_rate_of_bert() -> None:
    given = [
        cell.victim.config["model"]["init_args"] for cell in Grid(ROOT / "configs" / "benchmark" / "bert.yaml").cells
    ]
    names = ("learning_rate", "attack_learning_rate")
    assert {name: {some[name] for some in given if name in some} for name in names} == {name: {2e-5} for name in names}


def test_the_ids_of_earlier_results_stay() -> None:
    first, *_, last = Grid(ROOT / "configs" / "benchmark" / "movie_reviews.yaml").cells
    # they change with what the presets say, with the data and models of the packages that these name, and with the
    # formats of benchmark/identity.py
    assert (first.id, first.victim.id) == ("5eae41884892531e", "8eb1ae6321a20966")
    assert (last.id, last.victim.id) == ("1662661963a26913", "1822a8a5a5eaab70")


def test_the_readmes_grid_is_a_grid(tmp_path: Path) -> None:
    block = one_block("yaml", "# grid.yaml\n")
    (tmp_path / "grid.yaml").write_text(block, encoding="utf-8")
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    grid = Grid(tmp_path / "grid.yaml")
    assert grid.wandb == {"project": "my-backdoors"}
    # on either dataset: attacks by defenses by seeds, less what is excluded, and a control of each attack and seed
    assert len(grid.cells) == 2 * (3 * 3 * 3 - 3 + 2 * 3)


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "sweeps").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_sweep_makes_commands_that_are_understood(
    path: Path, inside: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert sweep["command"][:3] == ["${interpreter}", "-m", "lightning_backdoor"]
    assert sweep["command"][-1] == "${args}"
    command, *options = sweep["command"][3:-1]
    options = [re.sub(r"^--config=configs/", f"--config={ROOT}/configs/", option) for option in options]
    last = [values["values"][-1] for values in sweep["parameters"].values()]
    args = [f"--{name}={value}" for name, value in zip(sweep["parameters"], last, strict=True)]
    with pytest.raises(SystemExit) as ended:
        run(command, [*options, *args, "--print_config"])
    assert ended.value.code == 0
    made = yaml.safe_load(capsys.readouterr().out)
    for name, value in zip(sweep["parameters"], last, strict=True):
        part, _, argument = name.partition(".")
        assert (made[part]["init_args"][argument] if argument else made[part]) == value
    assert len(list(product(*(values["values"] for values in sweep["parameters"].values())))) == 15
