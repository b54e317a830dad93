"""Options of the trainer that are refused end a command with one line and exit status 2."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from lightning_backdoor.cli import main
from tests.support.workspace import inside, workspace  # noqa: F401 - fixtures


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("accelerator", "gpus"),
        ("devices", "0"),
        ("strategy", "nowhere"),
        ("precision", "8-true"),
        ("profiler", "nowhere"),
        ("max_epochs", "-5"),
        ("limit_train_batches", "1.5"),
        ("val_check_interval", "5000"),
        ("accumulate_grad_batches", "0"),
        ("check_val_every_n_epoch", "0"),
        ("overfit_batches", "2"),
    ],
)
def test_an_option_that_the_trainer_refuses_is_reported_in_one_line(
    inside: Path,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    option: str,
    value: str,
) -> None:
    assert main(["fit", "-c", "data.yaml", f"--trainer.{option}={value}", "--run_dir", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: trainer")
    assert not [*tmp_path.rglob("*.ckpt")]


@pytest.mark.parametrize("strategy", ["fsdp", "fsdp_cpu_offload", "deepspeed_stage_3", "FSDPStrategy"])
def test_strategies_that_keep_weights_in_parts_are_refused_before_training(
    inside: Path,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
    strategy: str,
) -> None:
    for devices in ("1", "2"):
        assert main(["fit", "-c", "data.yaml", "--trainer.strategy", strategy, "--trainer.devices", devices]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: trainer.strategy: ")
    assert "give ddp" in line


def test_callbacks_that_the_trainer_refuses_are_reported_in_one_line(
    inside: Path,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stopping = {"class_path": "lightning.pytorch.callbacks.EarlyStopping", "init_args": {"monitor": "val/cacc"}}
    for callbacks in ([stopping, stopping], [{"class_path": "lightning.pytorch.callbacks.ModelCheckpoint"}]):
        config = tmp_path / "callbacks.yaml"
        config.write_text(yaml.safe_dump({"trainer": {"callbacks": callbacks}}), encoding="utf-8")
        assert main(["fit", "-c", "data.yaml", "-c", str(config), "--run_dir", str(tmp_path / "run")]) == 2
        assert "error: trainer: Found more than one" in capsys.readouterr().err.splitlines()[-1]
