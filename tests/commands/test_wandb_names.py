"""What commands tell Weights & Biases: names within its limits, groups, the config; and the csv log beside it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonargparse import Namespace
from lightning.pytorch.loggers import CSVLogger, WandbLogger

from lightning_backdoor.cli import main
from lightning_backdoor.commands.wandb_names import check_wandb_names, tell_wandb, with_csv_log
from lightning_backdoor.errors import InputError
from lightning_backdoor.outputs.wandb_names import run_names
from tests.support.wandb_files import Run

LONG = "é" * 129


@pytest.mark.parametrize("part", ["init_args", "dict_kwargs"])
@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("project", LONG, "has 129 characters; give at most 128"),
        ("project", "a/b", "is 'a/b'; give none of"),
        ("name", LONG, "has 129 characters; give at most 128"),
        ("group", LONG, "has 129 characters; give at most 128"),
        ("job_type", LONG[:65], "has 65 characters; give at most 64"),
        ("tags", ["a", LONG[:65]], "has 65 characters; give 1 to 64"),
        ("tags", [""], "'' has 0 characters; give 1 to 64"),
    ],
)
def test_what_wandb_does_not_take_is_refused(part: str, name: str, value: Any, message: str) -> None:
    given = {name: value} if part == "dict_kwargs" else Namespace({name: value})  # type: ignore[no-untyped-call]
    with pytest.raises(InputError) as caught:
        check_wandb_names(Namespace({part: given}))  # type: ignore[no-untyped-call]
    assert caught.value.field == f"trainer.logger.{name}"
    assert message in str(caught.value)


def test_names_within_the_limits_pass() -> None:
    names = {"project": LONG[:128], "name": LONG[:128], "group": None, "job_type": LONG[:64], "tags": [LONG[:64]]}
    check_wandb_names(Namespace(init_args=Namespace(names)))  # type: ignore[no-untyped-call]


def test_a_fit_ends_before_it_begins(inside: object, capsys: pytest.CaptureFixture[str]) -> None:
    logger = ("--trainer.logger", "WandbLogger", "--trainer.logger.offline", "true", "--trainer.logger.project", LONG)
    assert main(["fit", "-c", "data.yaml", "--run_dir", "no_wandb", *logger]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: trainer.logger.project: ")


@pytest.fixture
def offline(inside: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The workspace, where runs are kept offline and closed."""
    import wandb

    for name, value in (("MODE", "offline"), ("SILENT", "true"), ("CONSOLE", "off")):
        monkeypatch.setenv(f"WANDB_{name}", value)
    for name in ("NAME", "RUN_GROUP", "JOB_TYPE"):
        monkeypatch.delenv(f"WANDB_{name}", raising=False)
    for name in ("DATA_DIR", "CACHE_DIR"):
        monkeypatch.setenv(f"WANDB_{name}", str(inside / "wandb-files"))
    yield inside
    wandb.finish()


def test_fit_and_test_of_a_victim_are_in_one_group_with_the_whole_config_and_a_csv_log(offline: Path) -> None:
    import wandb

    options = [
        "-c",
        "data.yaml",
        "-c",
        "configs/trainer/wandb.yaml",
        "--run_dir",
        "tracked_runs",
        "--seed_everything",
        "7",
    ]
    few = ["--trainer.max_steps", "2", "--trainer.val_check_interval", "2", "--data.max_rows.train", "64"]
    assert main(["fit", *options, *few, "--trainer.logger.tags+", "mine"]) == 0
    wandb.finish()
    saved = ["-c", "tracked_runs/config.yaml", "-c", "configs/defense/strip.yaml", "--data.max_rows.test", "24"]
    assert main(["test", *saved, "--ckpt_path", "best"]) == 0
    wandb.finish()
    fit, test = Run(offline / "tracked_runs" / "wandb"), Run(offline / "tracked_runs" / "test" / "wandb")
    assert fit.record.display_name == "data / model / BadNets / seed 7"
    assert test.record.display_name == "data / model / BadNets / Strip / seed 7"
    assert fit.record.run_group == test.record.run_group == "data/model/BadNets"
    assert (fit.record.job_type, test.record.job_type) == ("train", "Strip")
    assert [*fit.record.tags] == ["data", "model", "BadNets", "seed 7", "mine"]
    assert [*test.record.tags] == ["data", "model", "BadNets", "Strip", "seed 7", "mine"]
    for run in (fit, test):
        wanted = {"batch_size": 16, "precision": "32-true", "max_epochs": 1, "seed": 7}
        assert {name: run.config[name] for name in wanted} == wanted
        assert run.config["versions"].keys() >= {"python", "torch", "lightning-backdoor"}
    assert (fit.config["rows"]["train"], fit.config["rows"]["train poisoned"]) == (64, 6)
    assert test.config["rows"]["test"] == 24
    assert fit.config["fit"]["data"]["init_args"]["max_rows"] == {"train": 64}
    assert "logger" not in fit.config["fit"]["trainer"]
    assert test.config["test"]["seed_everything"] == 7
    assert {"train/loss", "val/cacc"} & {*fit.logged}
    for folder in (offline / "tracked_runs", offline / "tracked_runs" / "test"):
        assert [*folder.glob("logs/version_0/metrics.csv")], folder


def test_names_that_the_user_gave_are_kept_and_tags_and_config_added_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_JOB_TYPE", "night")
    logger = WandbLogger(name="my run", tags=["mine"], config={"batch_size": 1, "own": 2}, offline=True)
    names = run_names(["d" * 99, "m" * 99, "a", "x"], 123456789, "j" * 99)
    tell_wandb([CSVLogger("."), logger, None], names, {"batch_size": 16, "fit": {}})
    told = logger._wandb_init
    assert (told["name"], told.get("job_type")) == ("my run", None)
    assert (len(told["group"]), told["tags"][-2:]) == (128, ["seed 123456789", "mine"])
    assert all(len(tag) <= 64 for tag in told["tags"])
    assert told["config"] == {"batch_size": 1, "own": 2, "fit": {}}
    assert len(names["name"]) == 128
    assert names["name"].endswith(" / seed 123456789")
    assert len(names["job_type"]) == 64


def test_a_csv_log_is_added_to_wandb_alone() -> None:
    def named(*names: str) -> list[Any]:
        return [Namespace(class_path=f"lightning.pytorch.loggers.{name}") for name in names]  # type: ignore[no-untyped-call]

    def added(loggers: Any) -> list[str]:
        found = with_csv_log(loggers)
        return [logger.class_path.rpartition(".")[2] for logger in (found if isinstance(found, list) else [found])]

    assert added(named("WandbLogger")[0]) == added(named("WandbLogger")) == ["WandbLogger", "CSVLogger"]
    assert added(named("CSVLogger", "WandbLogger")) == ["CSVLogger", "WandbLogger"]
    assert added(named("TensorBoardLogger")) == ["TensorBoardLogger"]
    assert with_csv_log(False) is False
