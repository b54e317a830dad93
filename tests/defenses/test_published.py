"""Figures of the published code on a real backdoored MiniLM: scores per text, and rates over a test set."""

from __future__ import annotations

import json
import random
from typing import Any, NamedTuple

import pytest
import torch

from lightning_backdoor.attacks import BadNets
from lightning_backdoor.batch import Batch, batch_of_texts, collate, token_ids
from lightning_backdoor.data.poisoning import poison_evaluation
from lightning_backdoor.data.rows import Row, clean_row
from lightning_backdoor.defenses.defense import judge, predict
from lightning_backdoor.defenses.gradient_attention import GradientAttention
from lightning_backdoor.metrics import AttackSuccessRate, CleanAccuracy, DetectionAUROC
from lightning_backdoor.victim import TextClassifier
from tests.support.shared_files import shared_path, sst2


@pytest.fixture(scope="module")
def golden() -> list[dict[str, Any]]:
    cases: list[dict[str, Any]] = json.loads(shared_path("golden/gradient_attention.json").read_text())["cases"]
    return cases


@pytest.mark.parametrize("size", [1, 8, 59], ids="{} a batch".format)
def test_scores_are_those_of_the_published_code(
    size: int, golden: list[dict[str, Any]], backdoored: TextClassifier
) -> None:
    cases = random.Random(size).sample(golden, len(golden))  # shuffled
    assert len(cases) == 59
    for start in range(0, len(cases), size):
        some = cases[start : start + size]
        batch = batch_of_texts([case["text"] for case in some], backdoored.tokenizer, backdoored.max_length)
        predictions = predict(backdoored, batch["text"])
        scores = GradientAttention().score(backdoored, batch)
        assert scores.tokens is not None
        assert scores.top is not None
        assert predictions.tolist() == [case["prediction"] for case in some]
        for i, case in enumerate(some):
            tokens = backdoored.tokenizer.convert_ids_to_tokens(batch["input_ids"][i])
            found = {token: s for token, s in zip(tokens, scores.tokens[i].tolist(), strict=True) if s > -torch.inf}
            expected = {entry["token"]: entry["score"] for entry in case["tokens"]}
            assert found == pytest.approx(expected, rel=1e-4, abs=1e-5), case["text"]
            assert scores.text[i].item() == pytest.approx(case["anomaly_score"], rel=1e-4, abs=1e-5)
            assert tokens[scores.top[i]] == max(expected, key=expected.__getitem__)


class Outcome(NamedTuple):
    """Rates before and after the defense, and the AUROC of its scores."""

    cacc: float
    cacc_defended: float
    asr: float
    asr_defended: float
    auroc: float


def batches(rows: list[Row], victim: TextClassifier) -> list[Batch]:
    ids = token_ids([row["text"] for row in rows], victim.tokenizer, victim.max_length)
    by_length = sorted(zip(rows, ids, strict=True), key=lambda pair: len(pair[1]))
    whole = [{**row, "input_ids": row_ids} for row, row_ids in by_length]
    return [collate(whole[start : start + 32], victim.tokenizer) for start in range(0, len(whole), 32)]


def outcome(victim: TextClassifier, padded: bool) -> Outcome:
    """The published experiment: 400 clean and 290 poisoned test rows, the threshold from 400 validation rows.

    Args:
        victim: the backdoored MiniLM.
        padded: pad the texts of each set to the longest of the set, as the published code does.
    """

    def defense_of(texts: list[Batch]) -> GradientAttention:
        longest = max(batch["input_ids"].shape[1] for batch in texts)
        return GradientAttention(fpr=0.10, padded_like_paper=longest if padded else False)

    rows = {
        split: [clean_row(text, label, i) for i, (text, label) in enumerate(sst2(split, 600))]
        for split in ("validation", "test")
    }
    poisoned = poison_evaluation(rows["test"], BadNets(triggers=["cf"], place="random"), seed=0, split="test")
    assert len(poisoned) == 290
    clean = batches(rows["test"][:400], victim)
    triggered = batches(poisoned, victim)
    validation = batches(rows["validation"][:400], victim)
    calibrated = defense_of(validation)
    calibrated.calibrate(victim, validation)
    cacc, cacc_defended, asr, asr_defended = CleanAccuracy(), CleanAccuracy(), AttackSuccessRate(), AttackSuccessRate()
    auroc = DetectionAUROC()
    for texts in (clean, triggered):
        defense = defense_of(texts)
        defense.load_state_dict(calibrated.state_dict())
        for batch in texts:
            with torch.inference_mode():
                verdict = judge(defense, victim, batch, victim(batch))
            for metric in (cacc, asr):
                metric.update(verdict.prediction, batch)
            for metric in (cacc_defended, asr_defended):
                metric.update(verdict.defended_prediction, batch)
            auroc.update(verdict.scores.text, batch["poisoned"])
    return Outcome(*(float(metric.compute()) for metric in (cacc, cacc_defended, asr, asr_defended, auroc)))


def test_scored_without_padding_it_defends_as_well_as_published(backdoored: TextClassifier) -> None:
    rates = outcome(backdoored, padded=False)
    assert rates.cacc == pytest.approx(0.873, abs=0.005)
    assert rates.asr >= 0.99
    assert rates.asr_defended <= 0.59
    assert rates.cacc_defended >= 0.828
    assert rates.auroc == pytest.approx(0.844, abs=0.02)


def test_padded_like_paper_it_gives_the_published_figures(backdoored: TextClassifier) -> None:
    rates = outcome(backdoored, padded=True)
    assert rates.auroc == pytest.approx(0.919, abs=0.01)
    assert rates.asr_defended == pytest.approx(0.355, abs=0.04)
    assert rates.cacc_defended == pytest.approx(0.848, abs=0.03)
