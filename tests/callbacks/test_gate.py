"""The gate of a defense, the words of flagged texts, and explanations, in a run."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest
import torch
from torch import Tensor

from lightning_backdoor.attacks import BadNets
from lightning_backdoor.batch import Batch
from lightning_backdoor.callbacks import InferenceDefense, inference_defense, kept_texts
from lightning_backdoor.callbacks.detection_metrics import DetectionMetrics
from lightning_backdoor.callbacks.gate import Gate
from lightning_backdoor.data import BackdoorDataModule
from lightning_backdoor.defenses.defense import Defense, Scores, Victim
from lightning_backdoor.errors import InputError
from lightning_backdoor.testing import check_defense
from lightning_backdoor.victim import TextClassifier
from tests.callbacks.test_inference_defense import run_test, trainer_with
from tests.support.reviews import reviews


class OfTrigger(Defense):
    """Flags texts with a trigger, and a share of others by chance; answers 0, and explains by the trigger."""

    def __init__(self, trigger: str = "cf", fpr: float = 0.2) -> None:
        super().__init__(fpr)
        self.trigger = trigger

    def score(self, victim: Victim, batch: Batch) -> Scores:
        by_chance = torch.tensor([crc32(text.encode()) / 2**32 for text in batch["text"]])
        return Scores(by_chance + torch.tensor([self.trigger in text.split() for text in batch["text"]]))

    def purify(self, victim: Victim, batch: Batch, flagged: Tensor, scores: Scores) -> Tensor:
        return torch.zeros_like(flagged, dtype=torch.int64)

    def explain(self, victim: Victim, batch: Batch) -> Scores | None:
        cf = batch["input_ids"] == victim.tokenizer.convert_tokens_to_ids(self.trigger)
        return Scores(torch.zeros(len(cf)), torch.where(cf, 1.0, -torch.inf))


@pytest.fixture
def data(tmp_path: Path) -> BackdoorDataModule:
    return reviews(tmp_path)


@pytest.fixture
def attack(tiny_folder: Callable[[str], str]) -> BadNets:
    return BadNets(model=tiny_folder("bert"), triggers=["cf"], learning_rate=1e-3)


def test_a_shut_gate_holds_repairs_back_and_nothing_else(
    tmp_path: Path, data: BackdoorDataModule, attack: BadNets
) -> None:
    shut, plain = OfTrigger("never", fpr=0.3), OfTrigger("never", fpr=0.3)
    gated = run_test(tmp_path / "gate", attack, data, InferenceDefense(shut, gate=True))
    usual = run_test(tmp_path / "plain", attack, data, InferenceDefense(plain))
    assert gated["test/gate_open"] == 0
    assert gated["test/gate_p_value"] >= 0.01
    assert gated["test/fpr"] == usual["test/fpr"] > 0
    for name in ("auroc", "tpr", "fpr_at_fpr_5"):
        assert gated[f"test/{name}"] == usual[f"test/{name}"]
    for name in ("cacc", "asr", "pacc"):
        assert gated[f"test/{name}_defended"] == gated[f"test/{name}"]
    assert gated["test/fpr_confirmed"] == gated["test/tpr_confirmed"] == 0
    assert "test/gate_open" not in usual
    page = (tmp_path / "gate" / "token_view.html").read_text(encoding="utf-8")
    assert "The gate is shut, nothing is repaired" in page


def test_all_is_gathered_before_the_first_file_is_written(
    tmp_path: Path, data: BackdoorDataModule, attack: BadNets, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind a shut gate, too: no process waits for one that cannot write."""
    calls: list[str] = []
    for module in (inference_defense, kept_texts):
        for name in ("of_all_processes", "write_outcomes", "write_words", "write_whole"):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, noted(calls, getattr(module, name)))
    gathered = DetectionMetrics.scores
    monkeypatch.setattr(DetectionMetrics, "scores", noted(calls, gathered))
    run_test(tmp_path, attack, data, InferenceDefense(OfTrigger("never", fpr=0.3), gate=True))
    gathering = [number for number, name in enumerate(calls) if name in ("of_all_processes", "scores")]
    assert gathering == [0, 1, 2, 3]
    assert {"write_outcomes", "write_words", "write_whole"} <= {*calls[4:]}


def noted(calls: list[str], function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that notes its name whenever it is called."""

    def noting(*args: Any, **options: Any) -> Any:
        calls.append(function.__name__)
        return function(*args, **options)

    return noting


def test_an_open_gate_repairs_as_without_one_and_names_the_words(
    tmp_path: Path, data: BackdoorDataModule, attack: BadNets
) -> None:
    gated = run_test(tmp_path / "gate", attack, data, InferenceDefense(OfTrigger(), gate=True))
    usual = run_test(tmp_path / "plain", attack, data, InferenceDefense(OfTrigger()))
    assert gated["test/gate_open"] == 1
    assert gated["test/asr_defended"] == usual["test/asr_defended"]
    assert {name for name in gated if name not in usual} == {"test/gate_open", "test/gate_p_value"}
    for folder in ("gate", "plain"):
        words = json.loads((tmp_path / folder / "words.json").read_text(encoding="utf-8"))
        assert words[0]["word"] == "cf"
        assert words[0]["flagged"] == words[0]["texts"] > 0
        assert words[0]["log10_p"] < -2
        page = (tmp_path / folder / "token_view.html").read_text(encoding="utf-8")
        assert "Words that stand out among flagged texts (p-value): cf (" in page
    assert "The gate is open" in (tmp_path / "gate" / "token_view.html").read_text(encoding="utf-8")


def test_the_gate_sees_the_set_at_its_prevalence(tmp_path: Path, data: BackdoorDataModule, attack: BadNets) -> None:
    defense = OfTrigger(fpr=0.3)
    callback = InferenceDefense(defense, gate=True, prevalence=0.05)
    run_test(tmp_path, attack, data, callback)
    clean = len(data.poisoned_splits().clean["test"])
    assert callback._gate is not None
    assert callback._gate.texts == clean + round(0.05 * clean)


def test_the_gate_opens_for_the_share_or_for_a_word() -> None:
    assert not Gate(5, 100, math.log(0.0101), "").is_open
    assert Gate(50, 100, math.log(0.0099), "").is_open
    assert Gate(5, 100, 0.0, "cf (1e-9)").is_open


def test_a_gate_needs_clean_rows(tmp_path: Path, data: BackdoorDataModule, attack: BadNets) -> None:
    defense = OfTrigger()
    defense.threshold.fill_(1.0)  # as a checkpoint does
    run_test(tmp_path, attack, data)
    trainer = trainer_with(tmp_path, InferenceDefense(defense, gate=True))
    with pytest.raises(InputError, match="gate: it needs the clean threshold rows"):
        trainer.test(attack, data.test_dataloader(), verbose=False)


def test_flagged_texts_are_explained(tmp_path: Path, data: BackdoorDataModule, attack: BadNets) -> None:
    check_defense(OfTrigger("film"))
    defense = OfTrigger()
    logged = run_test(tmp_path, attack, data, InferenceDefense(defense))
    assert logged["test/localisation"] == logged["test/tpr"] == 1
    rows = [json.loads(line) for line in (tmp_path / "texts.jsonl").read_text(encoding="utf-8").splitlines()]
    for row in rows:
        shown = [row["text"][start:end] for start, end, _ in row["tokens"]]
        assert shown == (["cf"] * row["text"].split().count("cf") if row["flagged"] else [])
    clean = run_test(tmp_path, TextClassifier(model=attack.hparams["model"]), data, InferenceDefense(defense))
    assert "test/localisation" not in clean


def test_an_explanation_that_reads_flags_breaks_the_contract() -> None:
    class OfFlags(OfTrigger):
        def explain(self, victim: Victim, batch: Batch) -> Scores:
            tokens = batch["attention_mask"].float().log() + batch["poisoned"][:, None]
            return Scores(torch.zeros(len(tokens)), tokens)

    with pytest.raises(AssertionError, match=r"OfFlags\.explain: reads labels, flags"):
        check_defense(OfFlags())
