"""Runs that version 0.1.0 saved, before its modules were moved, are tested with the same result.

``saved_runs/`` holds what that version wrote in the workspace of the tests: each run's ``config.yaml`` with relative
paths, its ``best.ckpt`` without the states of optimizer and checkpoint callbacks, and the ``metrics.json`` of its test.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from lightning_backdoor.cli import main
from tests.support.workspace import inside, workspace

__all__ = ["inside", "workspace"]

SAVED = Path(__file__).parent / "saved_runs"


@pytest.mark.parametrize("name", ["badnets", "muscle_lora"])
def test_config_and_checkpoint_of_version_0_1_0_are_read(name: str, inside: Path) -> None:
    run = inside / "saved_runs" / name
    shutil.copytree(SAVED / name, run)
    checkpoint = ["--ckpt_path", str(run / "best.ckpt")]
    assert main(["test", "--config", str(run / "config.yaml"), *checkpoint]) == 0
    metrics = json.loads((run / "test" / "metrics.json").read_text(encoding="utf-8"))
    expected = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    assert {key: metrics[key] for key in expected} == pytest.approx(expected, abs=1e-6)

    before = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    after = yaml.safe_load((run / "test" / "config.yaml").read_text(encoding="utf-8"))
    assert {*before} <= {*after}  # a test also saves whether it is verbose
    for part in ("model", "data"):
        assert after[part]["class_path"] == before[part]["class_path"]
        assert before[part]["init_args"].items() <= after[part]["init_args"].items()
