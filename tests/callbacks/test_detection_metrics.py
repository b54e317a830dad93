"""Detection metrics where rows carry a part of the trigger: they count neither as clean nor as poisoned."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from lightning_backdoor.attacks import BadNets
from lightning_backdoor.batch import Batch, batch_of_texts
from lightning_backdoor.callbacks.detection_metrics import DetectionMetrics
from lightning_backdoor.callbacks.kept_texts import KeptTexts
from lightning_backdoor.callbacks.outcome_writer import batch_outcomes
from lightning_backdoor.defenses import Scores, Verdict
from lightning_backdoor.metrics import DetectionAUROC

TEXTS = ["a fine film", "the plot is thin", "cf a fine film", "cf the plot", "c a film", "f the plot"]
POISONED = torch.tensor([False, False, True, True, False, False])
NEGATIVE = torch.tensor([False, False, False, False, True, True])
SCORES = torch.tensor([0.1, 0.6, 0.5, 0.9, 5.0, 7.0])
PREDICTION = torch.tensor([0, 1, 1, 1, 1, 0])


@pytest.fixture
def attack(tiny_folder: Callable[[str], str]) -> BadNets:
    attack = BadNets(model=tiny_folder("bert"), triggers=["cf"], labels=["negative", "positive"])
    attack.configure_model()
    return attack.eval()


@pytest.fixture
def batch(attack: BadNets) -> Batch:
    made = batch_of_texts(TEXTS, attack.tokenizer, attack.max_length)
    spans = [[(0, 2)] if poisoned else [] for poisoned in POISONED.tolist()]
    labels = torch.tensor([0, 1, 0, 0, 0, 1])
    return {**made, "poisoned": POISONED, "negative": NEGATIVE, "original_label": labels, "spans": spans}


@pytest.fixture
def verdict() -> Verdict:
    flagged = SCORES >= 0.55
    logits = torch.nn.functional.one_hot(PREDICTION, 2).float()
    return Verdict(Scores(SCORES), flagged, logits, PREDICTION, [None] * len(TEXTS), PREDICTION.clone(), flagged)


def test_auroc_leaves_out_rows_with_a_part_of_the_trigger(attack: BadNets, batch: Batch, verdict: Verdict) -> None:
    metrics = DetectionMetrics(attack)
    metrics.update(attack, batch, verdict, torch.tensor([0.9, 0.6, 0.5]))
    metrics.update_overhead(2.0, 1.0)
    values = {name: float(value) for name, value in metrics.compute().items()}
    assert values["auroc"] == 0.75  # 0.5 and 0.9 against 0.1 and 0.6
    assert values["auroc_target"] == 0.5  # against 0.6 alone, the clean row predicted as the target
    assert values["tpr"] == 0.5
    assert [values[f"tpr_at_fpr_{budget}"] for budget in (1, 5, 10)] == [0.5, 0.5, 1.0]
    scores, poisoned = metrics.scores()
    assert scores.tolist() == pytest.approx([0.1, 0.6, 0.5, 0.9])
    assert poisoned.tolist() == [0, 0, 1, 1]
    with_all = DetectionAUROC()
    with_all.update(SCORES, POISONED)
    assert float(with_all.compute()) != values["auroc"]  # the rows would have made a difference


def test_the_number_of_texts_that_localisation_counts_is_given(attack: BadNets, batch: Batch, verdict: Verdict) -> None:
    metrics = DetectionMetrics(attack)
    top = verdict._replace(scores=Scores(SCORES, top=torch.ones(len(TEXTS), dtype=torch.long)))
    batch["spans"][3] = []
    for _ in range(2):
        metrics.update(attack, batch, top, torch.zeros(3))
    assert metrics.compute()["localisation_texts"] == 2  # a poisoned text with a trigger in each batch
    without_tops = DetectionMetrics(attack)
    without_tops.update(attack, batch, verdict, torch.zeros(3))
    assert without_tops.compute()["localisation_texts"] == 0


def test_outcomes_and_kept_texts_leave_out_rows_with_a_part_of_the_trigger(
    attack: BadNets, batch: Batch, verdict: Verdict
) -> None:
    for outcomes in (batch_outcomes(attack, batch, PREDICTION), batch_outcomes(attack, batch, PREDICTION, verdict)):
        assert [(outcome.index, outcome.poisoned) for outcome in outcomes] == [
            (0, False),
            (1, False),
            (2, True),
            (3, True),
        ]
    assert outcomes[3].score == pytest.approx(0.9)
    kept = KeptTexts(limit=10)
    kept.add(attack, batch, verdict)
    assert [row["text"] for row in kept.rows] == [*TEXTS[2:4], *TEXTS[:2]]


def test_kept_texts_of_the_same_index_do_not_depend_on_the_order_of_batches(
    attack: BadNets, batch: Batch, verdict: Verdict
) -> None:
    for order in ([2, 3], [3, 2]):
        kept = KeptTexts(limit=1)
        for row in (slice(i, i + 1) for i in order):
            one: Any = {**{name: value[row] for name, value in batch.items()}, "index": torch.tensor([7])}  # type: ignore[index]
            of_row: Any = [Scores(SCORES[row]), *(part[row] for part in verdict[1:])]
            kept.add(attack, one, Verdict(*of_row))
        assert [row["text"] for row in kept.rows] == [TEXTS[2]]
