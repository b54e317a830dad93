"""The table: what counts as valid, and rows over their seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lightning_backdoor.benchmark.table import INTERVALS, METRICS, Row, comparisons, mark_valid, measured, over_seeds
from lightning_backdoor.outputs.outcomes import Outcome, write_outcomes


def row(attack: str, defense: str, seed: int = 0, **values: Any) -> Row:
    names = {"dataset": "d", "model": "m", "attack": attack, "defense": defense, "seed": seed}
    return {**dict.fromkeys((*METRICS, *INTERVALS)), "error": "", "cell": f"{attack}{defense}{seed}", **names, **values}


def test_an_attack_is_valid_by_its_undefended_victim() -> None:
    rows = [
        row("benign", "none", cacc=0.90),
        row("strong", "none", cacc=0.88, asr=0.95),
        row("strong", "hardened", cacc=0.70, asr=0.20),  # what a defense does to it is another question
        row("weak", "none", cacc=0.90, asr=0.85),
        row("costly", "none", cacc=0.86, asr=1.0),
        row("failed", "none", error="broken"),
    ]
    mark_valid(rows, "benign")
    assert [r["valid"] for r in rows] == ["", "yes", "yes", "no", "no", ""]
    mark_valid(rows, None)
    assert {r["valid"] for r in rows} == {""}


def test_seeds_are_put_together_and_failed_ones_told_apart() -> None:
    rows = [
        row("a", "none", 0, cacc=0.8, valid="yes"),
        row("a", "none", 1, cacc=0.9, valid="no"),
        row("a", "none", 2, error="broken", valid=""),
        row("a", "other", 0, cacc=0.7, cacc_defended=0.6, cacc_defended_low=0.5, cacc_defended_high=0.65, valid=""),
    ]
    both, one = over_seeds(rows)
    assert (both.seeds, both.errors, both.valid, both.intervals) == ([0, 1], ["broken"], (1, 2), {})
    assert both.means["cacc"] == pytest.approx(0.85)
    assert both.spreads["cacc"] == pytest.approx(0.05 * 2**0.5)
    assert (one.spreads["cacc"], one.intervals) == (None, {"cacc_defended": (0.5, 0.65)})


def test_rejected_texts_are_neither_successes_nor_right() -> None:
    # whatever the labels are called
    outcomes = [
        Outcome(0, False, "bad", "rejected", "bad", "bad", False, False, 0.1, False),
        Outcome(1, False, "rejected", "rejected", "rejected", None, True, True, 0.9, True),
        Outcome(0, True, "bad", "rejected", "rejected", None, True, True, 0.8, True),
        Outcome(2, True, "bad", "rejected", "rejected", "rejected", False, False, 0.2, False),
    ]
    found = measured({"test/cacc": 1.0, "test/mine/cacc_defended": 0.5, "test/asr": 1.0, "val/cacc": 0.0}, outcomes)
    assert (found["n_clean"], found["n_poisoned"], found["cacc"], found["cacc_defended"]) == (2, 2, 1.0, 0.5)
    assert (found["asr_defended"], found["auroc"]) == (1.0, None)
    assert (found["cacc_defended_low"], found["cacc_defended_high"]) == (0.0, 1.0)  # one of two is right
    assert (found["asr_defended_low"], found["asr_defended_high"]) == (0.0, 1.0)


def test_defenses_are_compared_on_the_texts_that_both_have(tmp_path: Path) -> None:
    rows = [row("a", "none"), row("a", "other")]
    for r, predictions in zip(rows, (["good"] * 3, ["bad", "good"]), strict=True):
        (tmp_path / r["cell"]).mkdir()
        found = [Outcome(i, True, "bad", "good", prediction) for i, prediction in enumerate(predictions)]
        write_outcomes(tmp_path / r["cell"] / "outcomes.csv", found)
    (compared,) = comparisons(rows, tmp_path)
    assert (compared["first"], compared["second"], compared["metric"], compared["texts"]) == ("none", "other", "asr", 2)
    assert compared["difference"] == 0.5
