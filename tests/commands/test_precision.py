"""The precision ``auto``: what it stands for, where it is recorded, and that evaluation is in float32."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch
import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.plugins import DoublePrecision

from lightning_backdoor.cli import main
from lightning_backdoor.commands import precision
from lightning_backdoor.commands.parsing.known_options import PRECISIONS
from lightning_backdoor.commands.parsing.run_parser import parse, run_parser
from lightning_backdoor.commands.precision import RunPrecision, fit_precision, precision_text
from lightning_backdoor.errors import InputError
from lightning_backdoor.models import auto_precision
from lightning_backdoor.models.precision import has_bfloat16

GIVEN = ["--model", "BadNets", "--data", "BackdoorDataModule", "--data.source.path", "data.csv"]
SMALL = ["--data.max_rows", "train=96,validation=60,test=30"]


@pytest.fixture
def hardware(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool | None], None]:
    """Says whether the machine has bfloat16."""
    return lambda has: monkeypatch.setattr(precision, "has_bfloat16", lambda accelerator: has)


def options(**given: Any) -> Any:
    return SimpleNamespace(**{"precision": "auto", "accelerator": "auto", "strategy": "auto", "plugins": None, **given})


@pytest.mark.parametrize(("has", "value"), [(True, "bf16-mixed"), (False, "32-true"), (None, "32-true")])
def test_auto_fits_the_device(has: bool | None, value: str, hardware: Callable[[bool | None], None]) -> None:
    hardware(has)
    settled = fit_precision(options(), None)
    assert settled.value == value
    line = precision_text(*settled)
    assert line.startswith(f"precision: {value} (auto: ")
    assert ("evaluation in float32" in line) is bool(has)
    assert fit_precision(options(strategy="ddp_fork"), None).value == "32-true"


def test_a_given_precision_is_kept(hardware: Callable[[bool | None], None]) -> None:
    hardware(False)
    for given in (None, 32, "32-true", "bf16-true"):
        assert fit_precision(options(precision=given), None) == RunPrecision(given)
    slow = fit_precision(options(precision="bf16-mixed"), None)
    assert slow == RunPrecision("bf16-mixed", "slower than 32-true here: this device has no bfloat16")
    assert fit_precision(options(plugins=[DoublePrecision()]), None).value is None


def test_the_hardware_is_asked_as_torch_reports_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for bf16, amx in ((True, False), (False, True), (False, False)):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda has=bf16: has)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda has=amx: has)
        assert auto_precision("cpu") == ("bf16-mixed" if bf16 or amx else "32-true")
    for has in (True, False):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, has=has: has)
        assert has_bfloat16("cuda") is has
    assert has_bfloat16("mps") is None


def test_the_values_known_early_are_those_of_the_trainer_and_auto() -> None:
    annotation = Trainer.__init__.__annotations__["precision"]
    known = {str(value) for literal in get_args(annotation) for value in get_args(literal)}
    assert known == {*PRECISIONS} - {"auto"}
    for args, value in (
        ([], "auto"),
        (["--trainer.precision=32"], 32),
        (["--trainer.precision=bf16-true"], "bf16-true"),
    ):
        assert parse(run_parser("fit"), [*GIVEN, *args]).trainer.precision == value
    with pytest.raises(InputError, match=r"precision: 'bf16-mxied' is not one of its values; did you mean bf16-mixed"):
        parse(run_parser("fit"), [*GIVEN, "--trainer.precision", "bf16-mxied"])


def test_a_run_records_its_precision_and_keeps_it_when_it_is_resumed_elsewhere(
    inside: Path, capsys: pytest.CaptureFixture[str], hardware: Callable[[bool | None], None]
) -> None:
    run = inside / "auto"
    auto = ["-c", "data.yaml", *SMALL, "--run_dir", str(run), "--trainer.precision", "auto", "--keep_last", "true"]
    hardware(True)
    assert main(["fit", *auto]) == 0
    assert "precision: bf16-mixed (auto: this device has bfloat16); evaluation in float32\n" in capsys.readouterr().out
    assert yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))["trainer"]["precision"] == "bf16-mixed"
    statement = json.loads((run / "model" / "config.json").read_text(encoding="utf-8"))["lightning_backdoor"]
    assert statement["training_precision"] == "bf16-mixed"
    assert "bf16-mixed" in (run / "model" / "README.md").read_text(encoding="utf-8").replace("\\", "")

    checkpoint = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    evaluate = ["validate", "-c", str(run / "config.yaml"), "--ckpt_path", str(run / "checkpoints" / "best.ckpt")]
    assert main(evaluate) == 0
    metrics = json.loads((run / "validate" / "metrics.json").read_text(encoding="utf-8"))
    selected = checkpoint["validation_metrics"]
    assert selected == {name: pytest.approx(metrics[name], rel=1e-5) for name in selected}
    hyper = yaml.safe_load((run / "validate" / "logs" / "version_0" / "hparams.yaml").read_text(encoding="utf-8"))
    assert hyper["precision"] == "32-true"

    hardware(False)
    capsys.readouterr()
    assert main(["fit", *auto, "--ckpt_path", "last", "--trainer.max_epochs", "2"]) == 0
    assert "precision: bf16-mixed (as this training began); evaluation" in capsys.readouterr().out


def test_a_checkpoint_that_records_no_precision_was_trained_in_float32(
    trained: Path, tmp_path: Path, hardware: Callable[[bool | None], None]
) -> None:
    hardware(True)
    last = trained / "checkpoints" / "last.ckpt"
    assert fit_precision(options(), last).value == "32-true"
    content = torch.load(last, weights_only=True)
    del content["precision"]
    torch.save(content, tmp_path / "old.ckpt")
    assert fit_precision(options(), tmp_path / "old.ckpt").value == "32-true"
