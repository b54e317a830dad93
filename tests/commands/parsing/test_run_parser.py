"""The options of ``fit`` and its like: errors in one line, presets from any folder, Lightning's public interface."""

from __future__ import annotations

import ast
import os
import sys
from pathlib import Path

import pytest
import yaml
from lightning.pytorch.cli import LightningCLI

from lightning_backdoor.cli import main
from lightning_backdoor.commands import run_cli
from lightning_backdoor.commands.fit import _command_line, check
from lightning_backdoor.commands.run_cli import RunCLI
from lightning_backdoor.commands.run_folder import VARIABLE
from lightning_backdoor.errors import InputError

#: a defense that does not implement ``score``.
DEFENSES = """
from lightning_backdoor.defenses.defense import Defense


class Bare(Defense):
    pass
"""
INFERENCE = ["--trainer.callbacks+=lightning_backdoor.callbacks.InferenceDefense", "--trainer.callbacks.defense"]
GRADIENT_ATTENTION = "--trainer.callbacks+=lightning_backdoor.callbacks.GradientAttentionDefense"

CONFIGS = Path(__file__).parents[3] / "configs"
WRONG_OPTIONS = {
    "unknown option": (["--flurb", "3"], "--flurb: there is no such option"),
    "unknown argument": (["--model.flurb", "3"], "model.flurb: BadNets has no flurb"),
    "wrong type": (["--trainer.max_epochs", "1.5"], "trainer.max_epochs: '1.5' is not a whole number"),
    "wrong nested type": (["--data.batch_size", "1.5"], "data.batch_size: '1.5' is not a whole number"),
    "null": (
        ["--data.batch_size", "null"],
        "data.batch_size: null is not one of its values; give a value, or leave it out",
    ),
    "penalty that comes too late": (
        ["--trainer.callbacks+=Flattening", "--trainer.max_epochs", "1"],
        "start_epoch: 1 leaves no epoch for the penalty: the epochs in which BadNets trains on poisoned rows are 1",
    ),
    "null of a parent's": (["--model.poison_rate=null"], "model.poison_rate: null is not one of its values"),
    "null of a callback": (
        [GRADIENT_ATTENTION, "--trainer.callbacks.fpr=null"],
        "trainer.callbacks.fpr: null is not one of its values",
    ),
    "missing file": (["--config", "nowhere.yaml"], "config: there is no file nowhere.yaml"),
    "missing module": ([*INFERENCE, "no_such_module.Nope"], "trainer.callbacks.defense: No module named"),
    "missing class": ([*INFERENCE, "defenses_here.Nope"], "trainer.callbacks.defense: module 'defenses_here' has no"),
    "abstract class": ([*INFERENCE, "defenses_here.Bare"], "defenses_here.Bare does not implement score; implement it"),
    "refused value": ([GRADIENT_ATTENTION, "--trainer.callbacks.fpr", "2"], "fpr: 2.0 is not a share of clean texts"),
    "folder of Lightning": (["--trainer.default_root_dir", "x"], "default_root_dir: x is not used; give --run_dir"),
}


@pytest.fixture
def working(inside: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The workspace as working directory, with a module of defenses in it and on the import path."""
    (inside / "defenses_here.py").write_text(DEFENSES, encoding="utf-8")
    monkeypatch.syspath_prepend(inside)
    monkeypatch.setenv(VARIABLE, "")
    monkeypatch.delenv(VARIABLE)
    return inside


@pytest.mark.parametrize(("options", "message"), WRONG_OPTIONS.values(), ids=WRONG_OPTIONS)
def test_a_wrong_option_is_reported_in_one_line_by_the_command_and_by_check(
    options: list[str], message: str, working: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["--config", "data.yaml", "--run_dir", "never", *options]
    assert main(["fit", *args]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("Seed set")]
    assert len(lines) == 1
    assert message in lines[0]
    with pytest.raises(InputError) as error:
        check(args)
    assert lines == [f"error: {error.value}"]
    assert not (working / "never").exists()


@pytest.mark.parametrize("path", sorted((CONFIGS / "evasion").glob("*.yaml")), ids=lambda path: path.stem)
def test_check_needs_no_trainer_for_a_penalty(path: Path, working: Path) -> None:
    check(["--config", "data.yaml", "--run_dir", "never", "--config", str(path), "--trainer.max_epochs", "2"])


def test_check_finds_what_is_wrong_with_the_data_and_leaves_nothing_behind(
    working: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = [*sys.argv]
    args = ["--config", "data.yaml", "--run_dir", "never"]
    check(args)
    check([*args, "--trainer.accelerator", "gpu", "--trainer.devices", "64"])  # devices of another machine
    for options, field in (
        (["--data.source.text_column", "body"], "text_column"),
        (["--model.model", "nowhere"], "model"),
        (["--ckpt_path", "nowhere.ckpt"], "checkpoint"),
        (["--data", "lightning_backdoor.data.PairsDataModule", "--data.path", "data.csv"], "model and data"),
    ):
        with pytest.raises(InputError) as error:
            check([*args, *options])
        assert error.value.field == field
    monkeypatch.setenv(VARIABLE, "the folder of a command that is running")
    with pytest.raises(InputError):
        check([*args, "--model.poison_rate", "2"])
    assert os.environ[VARIABLE] == "the folder of a command that is running"
    assert sys.argv == argv
    assert not (working / "never").exists()


@pytest.mark.parametrize(("devices", "replaced"), [("1", False), ("2", True)])
def test_processes_that_the_trainer_starts_repeat_the_command(devices: str, replaced: bool, working: Path) -> None:
    args = ["--config", "data.yaml", "--trainer.strategy", "ddp", "--trainer.devices", devices]
    before = [*sys.argv]
    with _command_line(RunCLI("fit", args), args):
        assert (sys.argv == [before[0], "fit", *args]) is replaced
    assert sys.argv == before


def test_more_processes_than_cores_are_refused(working: Path) -> None:
    args = ["--config", "data.yaml", "--run_dir", "never", "--trainer.devices", "9999"]
    with pytest.raises(InputError, match=r"^trainer.devices: 9999 processes are more than the \d+ cores"):
        RunCLI("fit", args)


def test_a_logger_writes_into_the_folder_of_the_run(working: Path) -> None:
    for given in (["--trainer.logger", "CSVLogger"], ["--trainer.logger+=CSVLogger", "--trainer.logger.name", "mine"]):
        cli = RunCLI("fit", ["--config", "data.yaml", "--run_dir", "one", *given])
        assert cli.trainer.log_dir is not None
        assert Path(cli.trainer.log_dir).is_relative_to(working / "one")


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("fit", {"ckpt_path": None, "weights_only": True}),
        ("validate", {"ckpt_path": None, "verbose": False, "weights_only": True}),
        ("test", {"ckpt_path": None, "verbose": False, "weights_only": True}),
        ("predict", {"return_predictions": False, "ckpt_path": None, "weights_only": True}),
    ],
)
def test_every_command_takes_the_options_of_its_method(
    command: str, options: dict[str, bool | None], working: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--config", "data.yaml", "--print_config"])
    assert ended.value.code == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert list(printed) == ["seed_everything", "trainer", "model", "data", "run_dir", "keep_last", *options]
    assert {name: printed[name] for name in options} == options
    assert RunCLI(command, ["--config", "data.yaml"]).method_arguments == options


def test_a_preset_is_found_from_any_folder_and_a_file_there_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    command = ["fit", "-c", "configs/data/movie_reviews.yaml", "--config=configs/attack/badnets.yaml", "--print_config"]

    def printed() -> dict[str, object]:
        with pytest.raises(SystemExit) as ended:
            main(command)
        assert ended.value.code == 0
        config: dict[str, object] = yaml.safe_load(capsys.readouterr().out)["model"]
        return config

    assert printed()["class_path"] == "lightning_backdoor.attacks.BadNets"
    (tmp_path / "configs" / "attack").mkdir(parents=True)
    own = tmp_path / "configs" / "attack" / "badnets.yaml"
    own.write_text("model: {class_path: lightning_backdoor.attacks.InsertSent}\n", encoding="utf-8")
    assert printed()["class_path"] == "lightning_backdoor.attacks.InsertSent"
    assert main(["fit", "--config", "configs/../data.yaml"]) == 2
    assert "there is no file configs/../data.yaml" in capsys.readouterr().err


def test_no_private_member_of_lightnings_command_line_is_used() -> None:
    private = {name for name in dir(LightningCLI) if name.startswith("_") and not name.endswith("__")}
    assert "_add_subcommands" in private
    for path in Path(run_cli.__file__).parent.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        defined = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        assert not (used | (defined if path.name == "run_cli.py" else set())) & private, path.name
