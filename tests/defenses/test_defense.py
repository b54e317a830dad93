"""The parts that all defenses share: thresholds, calibration and verdicts."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch
from jsonargparse import ArgumentError, ArgumentParser
from torch import Tensor

from lightning_backdoor.batch import Batch, batch_of_texts
from lightning_backdoor.callbacks import InferenceDefense
from lightning_backdoor.defenses.defense import (
    BUDGETS,
    REJECTED,
    Answer,
    Defense,
    Scores,
    Verdict,
    Victim,
    judge,
    predict,
    threshold_at_fpr,
)
from lightning_backdoor.defenses.gradient_attention import GradientAttention
from lightning_backdoor.errors import InputError
from lightning_backdoor.victim import TextClassifier
from tests.support.tiny import SENTENCES


class ByLength(Defense):
    """Scores a text by its length, rejects flagged texts, and records the texts it is given."""

    def __init__(self, fpr: float = 0.1) -> None:
        super().__init__(fpr)
        self.shown: list[str] = []

    def score(self, victim: Victim, batch: Batch) -> Scores:
        self.shown += batch["text"]
        return Scores(torch.tensor([float(len(text)) for text in batch["text"]]))


class Rewriting(ByLength):
    """Replaces flagged texts by given repairs."""

    def __init__(self, repairs: dict[str, str]) -> None:
        super().__init__()
        self.repairs = repairs

    def purify(self, victim: Victim, batch: Batch, flagged: Tensor, scores: Scores) -> list[str | None]:
        return [self.repairs[text] if flag else None for text, flag in zip(batch["text"], flagged, strict=True)]


class Answering(ByLength):
    """Flags texts of 10 characters or more, and gives one fixed answer to every batch."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer = answer
        self.threshold.fill_(10.0)

    def purify(self, victim: Victim, batch: Batch, flagged: Tensor, scores: Scores) -> Answer:
        answer: Answer = self.answer
        return answer


def batches(victim: TextClassifier, texts: list[str], size: int = 4) -> Iterator[Batch]:
    for start in range(0, len(texts), size):
        yield batch_of_texts(texts[start : start + size], victim.tokenizer, victim.max_length)


@pytest.mark.parametrize("n", [1, 2, 3, 9, 10, 11, 100, 101])
@pytest.mark.parametrize("fpr", [0.01, 0.05, 0.10, 0.29, 0.5, 0.99])
@pytest.mark.parametrize("values", [2, 5, 1000], ids="{} values".format)
def test_the_threshold_is_the_lowest_that_keeps_the_budget(n: int, fpr: float, values: int) -> None:
    scores = torch.randint(-values, values, (n,), generator=torch.Generator().manual_seed(n)).float() / 7
    threshold = threshold_at_fpr(scores, fpr)
    budget = math.floor(round(fpr * n, 6))
    assert (scores >= threshold).sum() <= budget
    lower = torch.nextafter(threshold, torch.tensor(-torch.inf))
    assert (scores >= lower).sum() > budget


def test_without_ties_the_whole_budget_is_spent() -> None:
    scores = torch.randperm(1000, generator=torch.Generator().manual_seed(0)).float()
    assert [(scores >= threshold_at_fpr(scores, fpr)).sum().item() for fpr in (0.01, 0.05, 0.29)] == [10, 50, 290]


def test_thresholds_come_from_the_calibration_texts_alone(bert: TextClassifier) -> None:
    clean, later = list(SENTENCES[:10]), list(SENTENCES[10:])
    defense = ByLength(fpr=0.3)
    defense.calibrate(bert, batches(bert, clean))
    assert defense.shown == clean
    lengths = torch.tensor([float(len(text)) for text in clean])
    assert defense.threshold == threshold_at_fpr(lengths, 0.3)
    assert defense.budget_thresholds.tolist() == [threshold_at_fpr(lengths, budget).item() for budget in BUDGETS]
    before = defense.state_dict()["threshold"].clone()
    for batch in batches(bert, [text * 3 for text in later]):
        judge(defense, bert, batch, bert(batch))
    assert defense.threshold == before


def test_calibrating_again_discards_the_first_calibration(bert: TextClassifier) -> None:
    once, twice = ByLength(), ByLength()
    twice.calibrate(bert, batches(bert, [text * 2 for text in SENTENCES]))
    for defense in (once, twice):
        defense.calibrate(bert, batches(bert, list(SENTENCES)))
    assert once.threshold == twice.threshold


def test_the_threshold_does_not_depend_on_how_the_calibration_texts_are_batched(victim: TextClassifier) -> None:
    thresholds = []
    for size, texts in ((1, list(SENTENCES)), (7, list(reversed(SENTENCES)))):
        defense = GradientAttention(fpr=0.2)
        defense.calibrate(victim, batches(victim, texts, size))
        thresholds.append(defense.threshold.item())
    assert thresholds[0] == pytest.approx(thresholds[1], rel=1e-4, abs=1e-5)


def test_no_calibration_text_is_an_error(bert: TextClassifier) -> None:
    for defense in (ByLength(), GradientAttention(), GradientAttention(padded_like_paper=64)):
        with pytest.raises(InputError, match="no clean texts"):
            defense.calibrate(bert, [])


@pytest.mark.parametrize("fpr", [0.0, 1.0, -0.1, 10])
def test_a_budget_that_is_not_a_share_is_an_error(fpr: float) -> None:
    with pytest.raises(InputError, match="fpr"):
        GradientAttention(fpr=fpr)


def test_a_threshold_survives_saving_and_loading(bert: TextClassifier) -> None:
    defense, other = GradientAttention(), GradientAttention()
    defense.calibrate(bert, batches(bert, list(SENTENCES)))
    other.load_state_dict(defense.state_dict())
    (batch,) = batches(bert, ["cf a film"])
    assert other.threshold == defense.threshold
    assert other.score(bert, batch).text == defense.score(bert, batch).text


def test_judging_before_calibration_is_an_error(bert: TextClassifier) -> None:
    (batch,) = batches(bert, ["a film"])
    with pytest.raises(RuntimeError, match="ByLength has no threshold; call calibrate"):
        judge(ByLength(), bert, batch, bert(batch))


class ByPrediction(NamedTuple):
    """Texts by the class that the victim predicts."""

    zero: list[str]
    one: list[str]


def by_prediction(victim: TextClassifier) -> ByPrediction:
    predictions = predict(victim, SENTENCES).tolist()
    pairs = list(zip(SENTENCES, predictions, strict=True))
    return ByPrediction([t for t, p in pairs if p == 0], [t for t, p in pairs if p == 1])


def test_a_rejected_text_has_no_prediction(bert: TextClassifier) -> None:
    defense = ByLength()
    defense.threshold.fill_(20.0)
    (batch,) = batches(bert, ["short", SENTENCES[0], "x" * 20, "y" * 19])
    logits = bert(batch)
    verdict = judge(defense, bert, batch, logits)
    own = logits.argmax(dim=1)
    assert verdict.flagged.tolist() == [False, True, True, False]  # at the threshold is flagged
    assert verdict.prediction.tolist() == own.tolist()
    assert verdict.defended_prediction.tolist() == [own[0], REJECTED, REJECTED, own[3]]
    assert verdict.confirmed.tolist() == verdict.flagged.tolist()
    assert verdict.purified_text == [None] * 4


def test_a_repair_that_does_not_change_the_prediction_clears_the_text(victim: TextClassifier) -> None:
    texts = by_prediction(victim)
    same, changed, untouched = texts.zero[0], texts.one[0], "x"
    assert untouched not in SENTENCES
    (batch,) = batches(victim, [changed, untouched, same])
    defense = Rewriting({same: texts.zero[1], changed: texts.zero[2]})
    defense.threshold.fill_(10.0)
    logits = victim(batch)
    verdict = judge(defense, victim, batch, logits)
    assert verdict.flagged.tolist() == [True, False, True]
    assert verdict.purified_text == [texts.zero[2], None, texts.zero[1]]
    assert verdict.prediction.tolist() == [1, logits[1].argmax(), 0]
    assert verdict.defended_prediction.tolist() == [0, logits[1].argmax(), 0]
    assert verdict.confirmed.tolist() == [True, False, False]


def answered(victim: TextClassifier, answer: Any) -> tuple[Verdict, Tensor]:
    """The verdict on two flagged texts around an unflagged one, and the victim's predictions."""
    (batch,) = batches(victim, [SENTENCES[0], "short", SENTENCES[1]])
    logits = victim(batch).detach()
    return judge(Answering(answer), victim, batch, logits), logits.argmax(dim=1)


def test_logits_of_the_defense_answer_flagged_texts(bert: TextClassifier) -> None:
    logits = torch.tensor([[3.0, 1.0], [9.0, -9.0], [-2.0, -1.0]])
    verdict, own = answered(bert, logits)
    assert verdict.flagged.tolist() == [True, False, True]
    assert verdict.defended_prediction.tolist() == [0, own[1], 1]
    assert verdict.confirmed.tolist() == [bool(own[0] != 0), False, bool(own[2] != 1)]
    assert verdict.purified_text == [None] * 3
    swapped, _ = answered(bert, logits.flip(1).to(torch.bfloat16))
    assert swapped.defended_prediction.tolist() == [1, own[1], 0]


def test_predictions_of_the_defense_answer_flagged_texts_and_may_reject(bert: TextClassifier) -> None:
    verdict, own = answered(bert, torch.tensor([1, 0, REJECTED]))
    assert verdict.defended_prediction.tolist() == [1, own[1], REJECTED]
    assert verdict.confirmed.tolist() == [bool(own[0] != 1), False, True]
    assert verdict.purified_text == [None] * 3


def test_what_an_answer_holds_for_texts_that_are_not_flagged_is_not_read(bert: TextClassifier) -> None:
    predicted, own = answered(bert, torch.tensor([1, -100, 0]))
    assert predicted.defended_prediction.tolist() == [1, own[1], 0]
    scored, own = answered(bert, torch.tensor([[0.0, 1.0], [torch.nan, torch.nan], [1.0, 0.0]]))
    assert scored.defended_prediction.tolist() == [1, own[1], 0]


def test_a_flagged_text_without_a_repaired_text_is_rejected(bert: TextClassifier) -> None:
    verdict, own = answered(bert, [None, "never flagged", SENTENCES[2]])
    assert verdict.defended_prediction.tolist() == [REJECTED, own[1], predict(bert, [SENTENCES[2]])[0]]
    assert verdict.purified_text == [None, None, SENTENCES[2]]
    nothing, _ = answered(bert, [None] * 3)
    assert nothing.defended_prediction.tolist() == [REJECTED, own[1], REJECTED]


@pytest.mark.parametrize(
    ("answer", "returned"),
    [
        (["too", "few"], "2 texts"),
        (torch.zeros(3, 5), r"a tensor of torch.float32 and shape \(3, 5\)"),
        (torch.zeros(3), r"a tensor of torch.float32 and shape \(3,\)"),
        (torch.zeros(2, dtype=torch.int64), r"a tensor of torch.int64 and shape \(2,\)"),
        (torch.tensor([0, 1, 2]), "classes from 0 to 2"),
        (torch.tensor([0, 1, -2]), "classes from -2 to 0"),
        (torch.tensor([[0.0, 1.0], [0.0, 1.0], [torch.nan, 0.0]]), "logits that are not finite"),
        (("a", "b", "c"), "a tuple"),
    ],
)
def test_an_answer_of_another_form_is_an_error(bert: TextClassifier, answer: Any, returned: str) -> None:
    with pytest.raises(ValueError, match=rf"Answering.purify returned {returned} for 3 texts and 2 classes"):
        answered(bert, answer)


def test_a_defense_without_score_is_abstract() -> None:
    class Unfinished(Defense):
        pass

    with pytest.raises(TypeError, match=r"abstract.*score"):
        Unfinished()  # type: ignore[abstract]


def test_a_config_that_names_a_defense_without_score_is_refused() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(InferenceDefense, "callback")
    named = {"class_path": f"{__name__}.WithoutScore"}
    with pytest.raises((ArgumentError, TypeError), match=r"score|abstract|WithoutScore"):
        parser.instantiate(parser.parse_object({"callback": {"defense": named}}))


class WithoutScore(Defense):
    """A defense that forgot to implement ``score``."""


def test_where_nothing_is_flagged_nothing_changes(bert: TextClassifier) -> None:
    defense = Rewriting({})
    defense.threshold.fill_(math.inf)
    (batch,) = batches(bert, list(SENTENCES[:4]))
    logits = bert(batch)
    verdict = judge(defense, bert, batch, logits)
    assert verdict.defended_prediction.tolist() == logits.argmax(dim=1).tolist()
    assert not verdict.flagged.any()
    assert not verdict.confirmed.any()


def test_a_verdict_is_the_same_alone_and_in_a_batch(victim: TextClassifier) -> None:
    defense = GradientAttention(fpr=0.5)
    defense.calibrate(victim, batches(victim, list(SENTENCES[:10])))
    texts = ["cf fine", *SENTENCES[10:18]]  # others, or the last digit of a score would decide at the threshold
    (batch,) = batches(victim, texts, len(texts))
    together = judge(defense, victim, batch, victim(batch))
    for i, text in enumerate(texts):
        (single,) = batches(victim, [text])
        alone = judge(defense, victim, single, victim(single))
        assert together.flagged[i] == alone.flagged[0]
        assert together.purified_text[i] == alone.purified_text[0]
        assert together.defended_prediction[i] == alone.defended_prediction[0]
        assert together.confirmed[i] == alone.confirmed[0]
    assert together.flagged.any()
