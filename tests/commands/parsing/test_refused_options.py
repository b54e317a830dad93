"""Options of the trainer that are refused end a command with one line and exit status 2."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from lightning_backdoor.cli import main


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
    inside: Path,
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
    inside: Path,
    capsys: pytest.CaptureFixture[str],
    strategy: str,
) -> None:
    for devices in ("1", "2"):
        assert main(["fit", "-c", "data.yaml", "--trainer.strategy", strategy, "--trainer.devices", devices]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: trainer.strategy: ")
    assert "give ddp" in line


NAMED = {
    "accelerator": [["--trainer.accelerator", "tpu"], "trainer.accelerator: tpu cannot be used (", "give auto, or cpu"],
    "devices": [["--trainer.devices", "abc"], "trainer.devices: abc cannot be used ("],
    "precision": [["--trainer.precision", "transformer-engine"], "trainer.precision: transformer-engine cannot be"],
    "profiler": [["--trainer.profiler", "xla"], "trainer.profiler: xla cannot be used (", "torch_xla"],
    "a profiler": [
        ["--trainer.profiler", "lightning.pytorch.profilers.XLAProfiler"],
        "trainer.profiler: ",
        "torch_xla",
    ],
    "a logger": [
        ["--trainer.logger", "lightning.pytorch.loggers.MLFlowLogger"],
        "trainer.logger: lightning.pytorch.loggers.MLFlowLogger cannot be created (Requirement 'mlflow",
        "install what it needs, or leave it out",
    ],
    "a plugin": [
        ["--trainer.plugins", "lightning.pytorch.plugins.BitsandbytesPrecision", "--trainer.plugins.mode", "nf4"],
        "trainer.plugins: lightning.pytorch.plugins.BitsandbytesPrecision cannot be created (Requirement 'bitsand",
    ],
    "validation": [["--trainer.val_check_interval", "0"], "trainer.val_check_interval: 0 is not a number of times"],
}


@pytest.mark.parametrize(("options", "words"), [(case[0], case[1:]) for case in NAMED.values()], ids=NAMED)
def test_the_option_that_lightning_refuses_is_named(
    inside: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    words: list[str],
) -> None:
    assert main(["fit", "-c", "data.yaml", *options, "--run_dir", str(tmp_path / "run")]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line != "Seed set to 0"]
    assert len(lines) == 1, lines
    assert lines[0].startswith(f"error: {words[0]}")
    assert all(word in lines[0] for word in words)
    assert not (tmp_path / "run").exists()


def test_callbacks_that_the_trainer_refuses_are_reported_in_one_line(
    inside: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stopping = {"class_path": "lightning.pytorch.callbacks.EarlyStopping", "init_args": {"monitor": "val/cacc"}}
    for callbacks in ([stopping, stopping], [{"class_path": "lightning.pytorch.callbacks.ModelCheckpoint"}]):
        config = tmp_path / "callbacks.yaml"
        config.write_text(yaml.safe_dump({"trainer": {"callbacks": callbacks}}), encoding="utf-8")
        assert main(["fit", "-c", "data.yaml", "-c", str(config), "--run_dir", str(tmp_path / "run")]) == 2
        assert "error: trainer.callbacks: Found more than one" in capsys.readouterr().err.splitlines()[-1]
