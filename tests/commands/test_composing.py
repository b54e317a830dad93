"""Presets of defenses together: a victim trained under one defense, then tested under several others at once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.language.conftest import make
from tests.support.forked import forked

CONFIGS = Path(__file__).parents[2] / "configs" / "defense"


def presets(*names: str) -> list[str]:
    return [option for name in names for option in ("--config", str(CONFIGS / f"{name}.yaml"))]


@pytest.fixture(scope="module")
def hardened(workspace: Path) -> Path:
    """A victim trained under MuScleLoRA as configured, but smaller and faster."""
    small = ["--trainer.callbacks.reference_size", "8", "--trainer.max_epochs", "1", "--model.learning_rate", "1e-2"]
    options = ["-c", "data.yaml", *presets("muscle_lora"), *small, "--run_dir", "hardened"]
    result = forked("fit", *options, cwd=workspace)
    assert result.returncode == 0, result.stderr
    return workspace / "hardened"


def metrics_of_test(run: Path, *options: str) -> dict[str, float]:
    """The metrics of a test of a run with further options."""
    checkpoint = ["--config", str(run / "config.yaml"), "--ckpt_path", str(run / "checkpoints" / "best.ckpt")]
    rows = ["--data.max_rows", "{test: 6, validation: 12}"]
    result = forked("test", *checkpoint, *rows, *options, cwd=run.parent)
    assert result.returncode == 0, result.stderr
    (folder,) = {line for line in result.stdout.splitlines() if line.startswith("written to: ")}
    metrics: dict[str, float] = json.loads(
        (run.parent / folder.removeprefix("written to: ") / "metrics.json").read_text(encoding="utf-8")
    )
    return metrics


def test_a_hardened_victim_is_tested_under_three_defenses_at_once(hardened: Path) -> None:
    make("llama", str(hardened.parent / "model"), hardened.parent / "llama")
    onion = (CONFIGS / "onion.yaml").read_text(encoding="utf-8")
    own = onion.replace("accuracy_budget: 0.02", "accuracy_budget: 0.02\n            language_model: llama")
    assert own != onion
    (hardened.parent / "onion.yaml").write_text(own, encoding="utf-8")  # with a language model that is read at once
    alone = metrics_of_test(hardened)
    together = metrics_of_test(hardened, "--config", "onion.yaml", *presets("strip", "gradient_attention"))
    strip = metrics_of_test(hardened, *presets("strip"))
    measured = {name: value for name, value in alone.items() if name.startswith("test/")}
    assert measured
    assert measured.items() <= together.items()
    strip_names = {name for name in strip if name.startswith("test/strip/") and not name.endswith("overhead")}
    assert "test/strip/asr_defended" in strip_names
    assert {name: together[name] for name in strip_names} == {name: strip[name] for name in strip_names}
    assert {f"test/{prefix}auroc" for prefix in ("", "onion/", "strip/")} <= together.keys()
    assert json.loads((hardened / "model" / "config.json").read_text())["architectures"] == [
        "BertForSequenceClassification"
    ]


def test_a_checkpoint_is_refused_in_one_line_without_the_defense_it_was_trained_under(
    hardened: Path, workspace: Path
) -> None:
    checkpoint = ["--ckpt_path", str(hardened / "checkpoints" / "best.ckpt")]
    result = forked("test", "-c", "data.yaml", *checkpoint, cwd=workspace)
    assert result.returncode == 2
    assert result.stderr.strip().splitlines()[-1].startswith("error: checkpoint: trained under MuScleLoRA(")
