"""Thresholds, calibration and verdicts, which every defense shares."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from lightning_backdoor.batch import Batch, batch_of_texts
from lightning_backdoor.defenses.defense import (
    BUDGETS,
    REJECTED,
    Defense,
    Scores,
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
    """Long texts are suspicious; remembers what it was shown. Rejects."""

    def __init__(self, fpr: float = 0.1) -> None:
        super().__init__(fpr)
        self.shown: list[str] = []

    def score(self, victim: Victim, batch: Batch) -> Scores:
        self.shown += batch["text"]
        return Scores(torch.tensor([float(len(text)) for text in batch["text"]]))


class Rewriting(ByLength):
    """Repairs flagged texts as it was told to."""

    def __init__(self, repairs: dict[str, str]) -> None:
        super().__init__()
        self.repairs = repairs

    def purify(self, victim: Victim, batch: Batch, flagged: Tensor, scores: Scores) -> list[str | None]:
        return [self.repairs[text] if flag else None for text, flag in zip(batch["text"], flagged, strict=True)]


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


def test_calibration_sees_what_it_is_given_and_nothing_after(bert: TextClassifier) -> None:
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


def test_calibrating_again_forgets_the_first_time(bert: TextClassifier) -> None:
    once, twice = ByLength(), ByLength()
    twice.calibrate(bert, batches(bert, [text * 2 for text in SENTENCES]))
    for defense in (once, twice):
        defense.calibrate(bert, batches(bert, list(SENTENCES)))
    assert once.threshold == twice.threshold


def test_the_threshold_does_not_depend_on_how_the_calibration_texts_are_batched(victim: TextClassifier) -> None:
    found = []
    for size, texts in ((1, list(SENTENCES)), (7, list(reversed(SENTENCES)))):
        defense = GradientAttention(fpr=0.2)
        defense.calibrate(victim, batches(victim, texts, size))
        found.append(defense.threshold.item())
    assert found[0] == pytest.approx(found[1], rel=1e-4, abs=1e-5)


def test_no_calibration_text_is_an_error(bert: TextClassifier) -> None:
    for defense in (ByLength(), GradientAttention(), GradientAttention(padded_like_paper=True)):
        with pytest.raises(InputError, match="no clean texts"):
            defense.calibrate(bert, [])


@pytest.mark.parametrize("fpr", [0.0, 1.0, -0.1, 10])
def test_a_budget_that_is_no_share_is_an_error(fpr: float) -> None:
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


class OfBothClasses(NamedTuple):
    zero: list[str]
    one: list[str]


def by_prediction(victim: TextClassifier) -> OfBothClasses:
    predictions = predict(victim, SENTENCES).tolist()
    pairs = list(zip(SENTENCES, predictions, strict=True))
    return OfBothClasses([t for t, p in pairs if p == 0], [t for t, p in pairs if p == 1])


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
