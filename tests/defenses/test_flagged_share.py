"""Flagged share: counts, the exact test, and what it reads of a stream."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterable, Iterator

import pytest
import torch
from scipy.stats import betabinom
from torch import Tensor

from lightning_backdoor.batch import Batch, batch_of_texts
from lightning_backdoor.defenses import (
    Defense,
    FlaggedShare,
    GradientAttention,
    Scores,
    Strip,
    flagged_share_verdict,
    judge,
    threshold_at_fpr,
)
from lightning_backdoor.defenses.defense import Victim, predict
from lightning_backdoor.errors import InputError
from lightning_backdoor.victim import TextClassifier
from tests.support.tiny import SENTENCES


class Scripted(Defense):
    """Scores texts as a table says, and records what it learns from."""

    def __init__(self, scores: dict[str, float], fpr: float = 0.25) -> None:
        super().__init__(fpr)
        self.scores = scores
        self.learned: list[str] = []

    def learn(self, victim: Victim, clean_batches: Iterable[Batch]) -> None:
        self.learned = [text for batch in clean_batches for text in batch["text"]]

    def score(self, victim: Victim, batch: Batch) -> Scores:
        return Scores(torch.tensor([self.scores[text] for text in batch["text"]]))


def batches(victim: TextClassifier, texts: Iterable[str], size: int = 3) -> Iterator[Batch]:
    rows = list(texts)
    for start in range(0, len(rows), size):
        yield batch_of_texts(rows[start : start + size], victim.tokenizer, victim.max_length)


@pytest.mark.parametrize(("flagged", "texts"), [(0, 7), (7, 7), (12, 40), (260, 2400), (0, 0)])
@pytest.mark.parametrize(("budget", "clean_texts"), [(0.01, 349), (0.29, 100), (0.5, 3)])
def test_the_p_value_is_that_of_the_beta_binomial_distribution(
    flagged: int, texts: int, budget: float, clean_texts: int
) -> None:
    verdict = flagged_share_verdict(flagged, texts, budget, clean_texts, [0] * flagged, "cf (1e-29)")
    r = math.floor(round(budget * clean_texts, 6)) + 1
    expected = float(betabinom.pmf(range(flagged, texts + 1), texts, r, clean_texts + 1 - r).sum())
    assert verdict.evidence.pop("p_value") == pytest.approx(expected, rel=1e-9)
    assert verdict.score == pytest.approx(max(0.0, -math.log10(expected)), rel=1e-8, abs=1e-9)
    assert math.copysign(1, verdict.score) == 1
    assert verdict.evidence == {
        "flagged": flagged,
        "texts": texts,
        "budget": budget,
        "clean_texts": clean_texts,
        "words": "cf (1e-29)",
    }


def test_the_score_is_finite_where_the_p_value_underflows() -> None:
    verdict = flagged_share_verdict(5000, 5000, 0.01, 1000, [1] * 5000)
    assert verdict.evidence["p_value"] == 0
    assert 300 < verdict.score < flagged_share_verdict(9000, 9000, 0.01, 2000, [1] * 9000).score < math.inf


def test_the_suspected_label_is_the_most_frequent_prediction_among_flagged_texts() -> None:
    assert flagged_share_verdict(5, 9, 0.1, 20, [2, 0, 2, 1, 2]).suspected_label == 2
    assert flagged_share_verdict(4, 9, 0.1, 20, [3, 1, 3, 1]).suspected_label == 1
    assert flagged_share_verdict(0, 9, 0.1, 20, []).suspected_label is None


@pytest.mark.parametrize(
    ("flagged", "texts", "budget", "clean_texts", "predictions"),
    [
        (3, 2, 0.1, 9, [0] * 3),
        (-1, 2, 0.1, 9, []),
        (2, 3, 0.1, 9, [0]),
        (1, 3, 0, 9, [0]),
        (1, 3, 1, 9, [0]),
        (0, 3, 0.1, 0, []),
    ],
)
def test_contradictory_numbers_are_an_error(
    flagged: int, texts: int, budget: float, clean_texts: int, predictions: list[int]
) -> None:
    with pytest.raises(ValueError, match=r"texts flagged|budget|clean texts"):
        flagged_share_verdict(flagged, texts, budget, clean_texts, predictions)


def test_flagged_texts_are_counted_among_trusted_texts_and_the_stream(bert: TextClassifier) -> None:
    threshold_rows, trusted, stream = SENTENCES[:8], SENTENCES[8:13], SENTENCES[13:]
    scores = {text: float(i) for i, text in enumerate(threshold_rows)}  # at a budget of a quarter, 6 and 7 are flagged
    scores |= {text: 9.0 if i == 0 else 1.0 for i, text in enumerate(trusted)}
    scores |= {text: 6.0 if i in (1, 2, 4) else 5.0 for i, text in enumerate(stream)}
    defense = Scripted(scores)
    inspection = FlaggedShare(defense)
    inspection.learn(bert, batches(bert, SENTENCES[:2]))
    assert defense.learned == list(SENTENCES[:2])
    inspection.calibrate(bert, batches(bert, threshold_rows))
    verdict = inspection.inspect(bert, batches(bert, trusted), batches(bert, stream))
    flagged = [trusted[0], stream[1], stream[2], stream[4]]
    expected = flagged_share_verdict(4, len(trusted) + len(stream), 0.25, 8, predict(bert, flagged).tolist())
    assert verdict == expected
    without_stream = inspection.inspect(bert, batches(bert, trusted))
    assert without_stream.evidence["texts"] == len(trusted)
    assert without_stream.evidence["flagged"] == 1


class Studying(Scripted):
    """Adds the mean score of the texts that it studied to the score of each; learns from trusted rows."""

    learns_from = "trusted"

    def __init__(self, scores: dict[str, float], fpr: float = 0.25) -> None:
        super().__init__(scores, fpr)
        self.mean = 0.0
        self.studied: list[str] = []

    def score(self, victim: Victim, batch: Batch) -> Scores:
        return Scores(super().score(victim, batch).text + self.mean)

    def study(self, victim: Victim, batches: Iterable[Batch]) -> Tensor:
        self.studied = [text for batch in batches for text in batch["text"]]
        return torch.tensor([sum(self.scores[text] for text in self.studied), len(self.studied)]).double()

    def adopt(self, sums: Tensor) -> None:
        self.mean = float(sums[0] / sums[1])


def test_what_taught_the_defense_is_not_counted_and_no_set_is_studied(bert: TextClassifier) -> None:
    threshold_rows, trusted, stream = SENTENCES[:8], SENTENCES[8:13], SENTENCES[13:]
    scores = {text: float(i % 8) for i, text in enumerate(SENTENCES)}
    defense, plain = Studying(scores), FlaggedShare(Scripted(scores))
    inspection = FlaggedShare(defense)
    inspection.learn(bert, batches(bert, trusted))
    for one in (inspection, plain):
        one.calibrate(bert, batches(bert, threshold_rows))
    verdict = inspection.inspect(bert, batches(bert, trusted), batches(bert, stream))
    assert verdict == plain.inspect(bert, [], batches(bert, stream))
    assert not defense.studied
    with pytest.raises(InputError, match=r"stream: there is no text to count, .* from which Studying learned; give a"):
        inspection.inspect(bert, batches(bert, trusted))


class Unlearning(Scripted):
    """Learns nothing."""

    learn = Defense.learn


@pytest.mark.parametrize("learns", [True, False])
def test_of_the_trusted_rows_those_are_counted_from_which_the_defense_did_not_learn(
    bert: TextClassifier, learns: bool
) -> None:
    """Half of the trusted rows are reference rows, of which a defense that has learned from them flags none."""
    threshold_rows, selection, reference, stream = (SENTENCES[i : i + 4] for i in range(0, 16, 4))
    scores = {text: float(i % 4) for i, text in enumerate(SENTENCES)} | dict.fromkeys(reference, 0.0)
    inspection = FlaggedShare((Scripted if learns else Unlearning)(scores))
    for _ in range(2):  # of a victim that is inspected later, nothing is left
        inspection.learn(bert, batches(bert, threshold_rows))
    inspection.learn(bert, batches(bert, reference))
    inspection.calibrate(bert, batches(bert, threshold_rows))
    mixed = [text for pair in zip(selection, reference, strict=True) for text in pair]
    evidence = inspection.inspect(bert, batches(bert, mixed), batches(bert, stream)).evidence
    assert (evidence["flagged"], evidence["texts"]) == (2, 8 if learns else 12)


def test_batches_of_the_stream_are_not_held(bert: TextClassifier) -> None:
    inspection = FlaggedShare(Scripted(dict.fromkeys(SENTENCES, 0.0)))
    inspection.calibrate(bert, batches(bert, SENTENCES))
    given: list[weakref.ref[Tensor]] = []
    held: list[int] = []

    def stream() -> Iterator[Batch]:
        for batch in batches(bert, SENTENCES, 1):
            held.append(sum(one() is not None for one in given))
            given.append(weakref.ref(batch["input_ids"]))
            yield batch

    inspection.inspect(bert, [], stream())
    assert max(held) <= 1


def test_words_of_flagged_texts_are_evidence(bert: TextClassifier) -> None:
    clean, attacked = [f"film {i}" for i in range(30)], [f"<b>CF</b> {i}" for i in range(30)]
    inspection = FlaggedShare(Scripted({text: float(text in attacked) for text in (*clean, *attacked)}))
    inspection.calibrate(bert, batches(bert, clean))
    words = str(inspection.inspect(bert, [], batches(bert, [*clean, *attacked], 20)).evidence["words"])
    assert words.startswith("<b>cf</b> (")


def test_it_flags_what_judging_with_the_defense_flags(bert: TextClassifier) -> None:
    inspection, alone = FlaggedShare(), GradientAttention()
    assert isinstance(inspection.defense, GradientAttention)
    texts = [f"cf {text}" for text in SENTENCES[10:]]
    for part in (inspection, alone):
        part.calibrate(bert, batches(bert, SENTENCES[:10]))
    verdict = inspection.inspect(bert, [], batches(bert, texts))
    judged = [judge(alone, bert, batch) for batch in batches(bert, texts)]
    assert verdict.evidence["flagged"] == sum(int(part.flagged.sum()) for part in judged)
    predictions = torch.cat([part.prediction[part.flagged] for part in judged]).tolist()
    words = str(verdict.evidence["words"])
    assert verdict == flagged_share_verdict(len(predictions), len(texts), 0.1, 10, predictions, words)


def test_the_budget_holds_also_where_a_defense_sets_its_threshold_in_another_way(bert: TextClassifier) -> None:
    class LowThreshold(Scripted):
        """Sets its threshold so low that it flags every text, whatever its ``fpr``."""

        def calibrate(self, victim: Victim, clean_batches: Iterable[Batch]) -> None:
            super().calibrate(victim, clean_batches)
            self.threshold.fill_(-1.0)

    scores = {text: float(i) for i, text in enumerate(SENTENCES)}
    inspection = FlaggedShare(LowThreshold(scores, fpr=0.3))
    inspection.calibrate(bert, batches(bert, SENTENCES))
    assert inspection.threshold == threshold_at_fpr(torch.tensor(list(scores.values())), 0.3)
    assert inspection.inspect(bert, batches(bert, SENTENCES)).evidence["flagged"] == int(0.3 * len(SENTENCES))


def test_without_a_threshold_or_clean_texts_it_says_so(bert: TextClassifier) -> None:
    with pytest.raises(RuntimeError, match="call calibrate"):
        FlaggedShare().inspect(bert, [])
    with pytest.raises(InputError, match="no clean texts"):
        FlaggedShare().calibrate(bert, [])


def test_its_seed_is_that_of_its_defense() -> None:
    inspection = FlaggedShare(Strip())
    assert inspection.seed is None
    inspection.seed = 5
    assert inspection.defense.seed == 5
    assert FlaggedShare(Strip(seed=3)).seed == 3
