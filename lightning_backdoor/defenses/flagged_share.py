"""Flagged share: an inspection that tests whether more texts are flagged than false positives explain.

A defense is calibrated to flag at most a share of clean texts, its budget. With a clean model it flags about this share
of all texts; with a backdoored model it flags poisoned texts in addition. The number of flagged texts among trusted
texts and an incoming stream is compared with the binomial distribution of the same number of draws, with the budget as
probability.

The p-value assumes that the budget is the exact probability that a clean text is flagged. A threshold set on few texts
meets the budget on these texts but may miss it by chance on others, so that very long streams give very small p-values
for clean models as well. Scores are comparable between models that were calibrated on the same number of texts and
inspected on the same number of texts.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Literal

import torch

from lightning_backdoor.batch import Batch, Victim
from lightning_backdoor.defenses.defense import Defense, finite_scores, threshold_at_fpr, victim_logits
from lightning_backdoor.defenses.gradient_attention import GradientAttention
from lightning_backdoor.defenses.inspection import Inspection, ModelVerdict
from lightning_backdoor.errors import InputError


def flagged_share_verdict(
    flagged: int, texts: int, budget: float, predictions_of_flagged: Sequence[int]
) -> ModelVerdict:
    """Whether the share of flagged texts is above a budget, by a one-sided binomial test.

    Args:
        flagged: number of flagged texts.
        texts: number of all texts.
        budget: probability, above 0 and below 1, with which a clean text is flagged.
        predictions_of_flagged: the victim's class index for each flagged text.

    Returns:
        ``score`` is -log10 of the p-value, finite even for the smallest p-values, and 0 where no text is flagged;
        ``suspected_label`` is the most frequent prediction among flagged texts (on ties the lowest index), None where
        no text is flagged; ``evidence`` contains ``flagged``, ``texts``, ``budget`` and ``p_value``, which is 0 below
        1e-323.

    Raises:
        ValueError: the numbers contradict each other, or the budget is out of range.

    >>> verdict = flagged_share_verdict(flagged=3, texts=4, budget=0.5, predictions_of_flagged=[1, 0, 1])
    >>> verdict.suspected_label, round(verdict.score, 4), round(verdict.evidence["p_value"], 4)
    (1, 0.5051, 0.3125)
    """
    if not 0 <= flagged <= texts or len(predictions_of_flagged) != flagged:
        raise ValueError(f"{flagged} of {texts} texts flagged, and {len(predictions_of_flagged)} predictions of them")
    if not 0 < budget < 1:
        raise ValueError(f"a budget of {budget} is not above 0 and below 1")
    log_p = _log_binomial_tail(flagged, texts, budget)
    counts = Counter(predictions_of_flagged)
    label = min(counts, key=lambda index: (-counts[index], index)) if counts else None
    evidence: dict[str, float | int | str] = {
        "flagged": flagged,
        "texts": texts,
        "budget": budget,
        "p_value": math.exp(log_p),
    }
    return ModelVerdict(abs(log_p) / math.log(10), label, evidence)


def _log_binomial_tail(successes: int, draws: int, probability: float) -> float:
    """Natural logarithm of P(at least ``successes`` in ``draws``), at most 0; finite even where P underflows."""
    if successes == 0:
        return 0.0
    k = torch.arange(successes, draws + 1, dtype=torch.float64)
    n = torch.tensor(draws, dtype=torch.float64)
    ways = torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)
    log_p = ways + k * math.log(probability) + (n - k) * math.log1p(-probability)
    return min(0.0, float(log_p.logsumexp(dim=0)))


class FlaggedShare(Inspection):
    """Tests whether a defense flags more trusted and incoming texts than its budget of false positives.

    The budget is the defense's ``fpr``. The threshold is set on the clean threshold rows for that budget, even if the
    defense otherwise sets its threshold in another way, as :class:`Onion` does.

    Args:
        defense: the defense that scores the texts; ``GradientAttention()`` by default. No text is repaired.

    Example::

        trainer = Trainer(callbacks=[InspectionCallback(FlaggedShare())])
        trainer.test(victim, datamodule=data)
    """

    def __init__(self, defense: Defense | None = None) -> None:
        self.defense = GradientAttention() if defense is None else defense
        self.threshold = torch.tensor(math.nan)

    @property
    def seed(self) -> int | None:
        """The seed of the defense."""
        return self.defense.seed

    @seed.setter
    def seed(self, seed: int | None) -> None:
        self.defense.seed = seed

    @property
    def learns_from(self) -> Literal["reference", "trusted"]:
        """The clean rows from which the defense learns."""
        return self.defense.learns_from

    def to(self, device: torch.device) -> None:
        """Moves the defense's buffers to a device."""
        self.defense.to(device)

    def learn(self, victim: Victim, clean_batches: Iterable[Batch]) -> None:
        """Calls the defense's ``learn`` with clean rows."""
        self.defense.learn(victim, clean_batches)

    def calibrate(self, victim: Victim, clean_batches: Iterable[Batch]) -> None:
        """Sets the threshold at which at most the budget of the clean threshold rows is flagged.

        Raises:
            InputError: ``clean_batches`` is empty, or a score is not finite.
        """
        batches = list(clean_batches)
        if not any(batch["text"] for batch in batches):
            raise InputError("calibration", "no clean texts", "a threshold needs clean validation rows")
        self.defense.calibrate(victim, batches)
        scores = torch.cat([finite_scores(self.defense, victim, batch).text.float().cpu() for batch in batches])
        self.threshold = threshold_at_fpr(scores, self.defense.fpr)

    def inspect(self, victim: Victim, clean_batches: Iterable[Batch], stream: Iterable[Batch] = ()) -> ModelVerdict:
        """Counts the flagged texts among the trusted ones and the stream; see :func:`flagged_share_verdict`.

        Raises:
            RuntimeError: :meth:`calibrate` has not been called.
        """
        if self.threshold.isnan():
            raise RuntimeError("FlaggedShare has no threshold; call calibrate with clean validation batches")
        texts = 0
        predictions: list[int] = []
        for batch in chain(clean_batches, stream):
            scores = finite_scores(self.defense, victim, batch)
            flagged = scores.text.float() >= self.threshold.to(scores.text.device)
            texts += len(batch["text"])
            predictions += victim_logits(victim, batch, scores).argmax(dim=-1)[flagged].tolist()
        return flagged_share_verdict(len(predictions), texts, self.defense.fpr, predictions)
