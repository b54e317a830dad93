"""Runs of version 0.1.0, before the packages were rearranged: their configs and checkpoints are read as they are."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from lightning_backdoor.cli import main
from tests.support.workspace import make_workspace, settings

RUNS = Path(__file__).parent / "version_0_1_0"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with the model and the data that the runs were trained on."""
    return make_workspace(tmp_path_factory.mktemp("version_0_1_0") / "workspace")


@pytest.mark.parametrize("name", ["plain", "hardened"])  # under a gradient-attention callback, and under MuScleLoRA
def test_a_run_of_version_0_1_0_gives_the_numbers_it_gave_then(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = shutil.copytree(RUNS / name, folder / name)
    expected: dict[str, Any] = json.loads((run / "expected.json").read_text(encoding="utf-8"))
    (run / "checkpoints").mkdir()
    (run / "best.ckpt").rename(run / "checkpoints" / "best.ckpt")
    options = ("--config", f"{name}/config.yaml", "--ckpt_path", f"{name}/checkpoints/best.ckpt")

    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for variable, value in settings(folder).items():
        monkeypatch.setenv(variable, value)
    for what in ("test", "predict"):
        assert main([what, *options]) == 0

    metrics = json.loads((run / "test" / "metrics.json").read_text(encoding="utf-8"))
    assert {key: metrics[key] for key in expected["metrics"]} == pytest.approx(expected["metrics"], abs=1e-6)
    lines = (run / "predict" / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    logits = {(row["index"], row["poisoned"]): row["logits"] for row in map(json.loads, lines)}
    for index, poisoned, values in expected["logits"]:
        assert logits[index, poisoned] == pytest.approx(values, abs=1e-4)
