"""One grid with defenses of all five moments, trained on tiny models, killed on the way and resumed."""

from __future__ import annotations

import csv
import json
import time
from collections import Counter
from pathlib import Path

import pytest
import yaml

from tests.benchmark.grids import SMALL
from tests.support.forked import begin, forked
from tests.support.wandb_files import runs

CONFIGS = Path(__file__).parents[2] / "configs"
#: a data defense that looks through a victim: it removes rows with the trigger that the victim reads as the target.
LOOKING = """\
from collections.abc import Sequence

import torch

from lightning_backdoor.batch import Victim
from lightning_backdoor.data.cleaning import DataDefense, LabelledText, TrustedRows


class Looking(DataDefense):
    needs_victim = True

    def clean(
        self, rows: Sequence[LabelledText], trusted: TrustedRows, victim: Victim | None
    ) -> list[str | None]:
        assert victim is not None and not victim.network.training and trusted.statistics
        cleaned: list[str | None] = [row.text for row in rows]
        for index, row in enumerate(rows):
            if "cf" in row.text.split():
                encoded = victim.tokenizer(row.text, return_tensors="pt")
                with torch.no_grad():
                    if victim.network(**encoded).logits.argmax() == row.label:
                        cleaned[index] = None
        return cleaned
"""
GRADIENT_ATTENTION = {"class_path": "lightning_backdoor.defenses.gradient_attention.GradientAttention"}
DEFENSES = {
    "none": None,
    "Looking": {"data": {"data": {"init_args": {"data_defense": {"class_path": "looking.Looking"}}}}},
    "MuScleLoRA": {"training": {"class_path": "lightning_backdoor.callbacks.MuScleLoRA"}},
    "FT, gradient attention": {"inference": GRADIENT_ATTENTION},
    "FT, STRIP": {"inference": {"class_path": "lightning_backdoor.defenses.strip.Strip", "init_args": {"copies": 2}}},
    "gradient attention": {"inference": GRADIENT_ATTENTION},
    "flagged share": {"inspection": str(CONFIGS / "defense" / "flagged_share.yaml")},
}


@pytest.fixture(scope="module")
def output(workspace: Path) -> Path:
    """The output of the grid, whose command was killed twice and then run to the end."""
    (workspace / "looking.py").write_text(LOOKING, encoding="utf-8")
    defenses = json.loads(json.dumps(DEFENSES))
    defenses["Looking"]["data"]["data"]["init_args"]["victim"] = "undefended"
    defenses["MuScleLoRA"]["training"]["init_args"] = {"reference_size": 8}
    for name in ("FT, gradient attention", "FT, STRIP"):
        defenses[name]["repair"] = str(CONFIGS / "defense" / "fine_tuning.yaml")
    exclude = [{"attack": "none", "defense": ["Looking", "MuScleLoRA", "FT, STRIP", "gradient attention"]}]
    grid = {**yaml.safe_load(SMALL), "defenses": defenses, "exclude": exclude, "wandb": {"project": "tests"}}
    (workspace / "five.yaml").write_text(yaml.safe_dump(grid, sort_keys=False), encoding="utf-8")
    folder = workspace / "five"
    line = ["benchmark", "--config", "five.yaml", "--output", "five"]
    for victims in (2, 5):
        process = begin(line, cwd=workspace, env={})
        while process.is_alive() and len(list(folder.glob("victims/*"))) < victims:
            time.sleep(0.1)
        time.sleep(0.5)
        process.kill()
        process.join()
        assert process.exitcode == -9, "the grid ended before it was killed"
    result = forked(*line, cwd=workspace)
    assert result.returncode == 0, result.stderr
    return folder


@pytest.fixture
def rows(output: Path) -> dict[tuple[str, str], dict[str, str]]:
    with (output / "results.csv").open(encoding="utf-8", newline="") as file:
        return {(row["attack"], row["defense"]): row for row in csv.DictReader(file)}


def test_every_moment_is_in_the_table(rows: dict[tuple[str, str], dict[str, str]]) -> None:
    assert [defense for attack, defense in rows if attack == "BadNets"] == ["clean training", *DEFENSES]
    assert {row["error"] for row in rows.values()} == {""}
    attacked = {defense: row for (attack, defense), row in rows.items() if attack == "BadNets"}
    assert int(float(attacked["Looking"]["cleaning_removed"])) > 0
    assert float(attacked["Looking"]["cleaning_precision"]) == 1
    assert {name for name, row in attacked.items() if row["cleaning_removed"]} == {"Looking"}
    assert {name for name, row in attacked.items() if row["inspection_score"]} == {"flagged share"}
    assert 0 <= float(attacked["flagged share"]["inspection_p_value"]) <= 1
    assert rows["none", "flagged share"]["inspection_score"] != ""
    assert float(attacked["Looking"]["asr"]) <= float(attacked["none"]["asr"])


def test_a_repaired_victim_is_trained_once_and_serves_two_inference_defenses(
    output: Path, rows: dict[tuple[str, str], dict[str, str]]
) -> None:
    first, second = (rows["BadNets", f"FT, {defense}"] for defense in ("gradient attention", "STRIP"))
    assert first["victim"] == second["victim"] != rows["BadNets", "none"]["victim"]
    assert first["overhead"]
    assert second["overhead"]
    events = [json.loads(line) for line in (output / "journal.jsonl").read_text(encoding="utf-8").splitlines()]
    trained = Counter(event["id"] for event in events if event["kind"] == "victim")
    assert set(trained.values()) == {1}
    # benign and BadNets: undefended and fine-tuned; BadNets: cleaned and with MuScleLoRA
    assert len(trained) == 6
    fit = yaml.safe_load((output / "victims" / first["victim"] / "fit.yaml").read_text(encoding="utf-8"))
    parent = output / "victims" / rows["BadNets", "none"]["victim"]
    assert fit["model"]["init_args"]["published"] == str(parent / "checkpoints" / "best.ckpt")


def test_report_and_wandb_runs_show_every_moment(output: Path) -> None:
    page = (output / "report.html").read_text(encoding="utf-8")
    assert all(defense in page for defense in DEFENSES)
    kinds = Counter(run.record.job_type for run in runs(output, unfinished_too=True))
    assert kinds["train"] >= 6  # a run that a kill cut off is begun again
    assert all(kinds[defense] >= 1 for defense in DEFENSES)
