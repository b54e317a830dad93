"""The presets of all defenses at once: hardened in training, then tested under several defenses side by side."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.workspace import command, workspace

__all__ = ["workspace"]

CONFIGS = Path(__file__).parents[2] / "configs" / "defense"


def config(*names: str) -> list[str]:
    return [option for name in names for option in ("--config", str(CONFIGS / f"{name}.yaml"))]


@pytest.fixture(scope="module")
def hardened(workspace: Path) -> Path:
    """A victim trained under MuScleLoRA as configured, but smaller and faster."""
    small = ["--trainer.callbacks.reference_size", "8", "--trainer.max_epochs", "1", "--model.learning_rate", "1e-2"]
    options = ["-c", "data.yaml", *config("muscle_lora"), *small, "--run_dir", "hardened"]
    result = command("fit", *options, cwd=workspace)
    assert result.returncode == 0, result.stderr
    return workspace / "hardened"


def numbers(run: Path, *options: str) -> dict[str, float]:
    checkpoint = ["--config", str(run / "config.yaml"), "--ckpt_path", str(run / "checkpoints" / "best.ckpt")]
    rows = ["--data.max_rows", "{test: 12, validation: 30}"]
    result = command("test", *checkpoint, *rows, *options, cwd=run.parent)
    assert result.returncode == 0, result.stderr
    (folder,) = {line for line in result.stdout.splitlines() if line.startswith("written to: ")}
    found: dict[str, float] = json.loads(
        (run.parent / folder.removeprefix("written to: ") / "metrics.json").read_text(encoding="utf-8")
    )
    return found


def test_a_hardened_victim_is_tested_under_three_defenses_at_once(hardened: Path) -> None:
    alone = numbers(hardened)
    together = numbers(hardened, *config("onion", "strip", "gradient_attention"))
    strip = numbers(hardened, *config("strip"))
    assert alone.items() <= together.items()
    of_strip = {name for name in strip if name.startswith("test/strip/") and not name.endswith("overhead")}
    assert "test/strip/asr_defended" in of_strip
    assert {name: together[name] for name in of_strip} == {name: strip[name] for name in of_strip}
    assert {f"test/{prefix}auroc" for prefix in ("", "onion/", "strip/")} <= together.keys()
    assert json.loads((hardened / "model" / "config.json").read_text())["architectures"] == [
        "BertForSequenceClassification"
    ]


def test_a_hardened_checkpoint_tested_without_its_defense_is_refused_in_one_line(
    hardened: Path, workspace: Path
) -> None:
    checkpoint = ["--ckpt_path", str(hardened / "checkpoints" / "best.ckpt")]
    result = command("test", "-c", "data.yaml", *checkpoint, cwd=workspace)
    assert result.returncode == 2
    assert result.stderr.strip().splitlines()[-1].startswith("error: checkpoint: trained under MuScleLoRA(")
