"""The contract of an inference-time defense, and the one way a verdict comes about."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lightning_backdoor.batch import Batch, Victim, batch_of_texts
from lightning_backdoor.data.cleaning import DataDefense
from lightning_backdoor.errors import InputError

__all__ = [
    "BUDGETS",
    "REJECTED",
    "DataDefense",
    "Defense",
    "Scores",
    "Verdict",
    "Victim",
    "judge",
    "predict",
    "threshold_at_fpr",
]

REJECTED = -1
#: FPR budgets at which detection is reported beside the defense's own.
BUDGETS = (0.01, 0.05, 0.10)


class Scores(NamedTuple):
    """How suspicious a batch looks.

    Attributes:
        text: (batch,), float32, higher is more suspicious.
        tokens: (batch, length), float32, the score of the token at each position, -inf where a position has none; or
            None for defenses that do not look at tokens.
        top: (batch,), int64, the position that the text's score comes from, -1 where there is none; or None.
        logits: (batch, classes), the victim's, from defenses that run it on the text as it is; or None.
    """

    text: Tensor
    tokens: Tensor | None = None
    top: Tensor | None = None
    logits: Tensor | None = None


class Verdict(NamedTuple):
    """What a defense made of a batch.

    Attributes:
        scores: see :class:`Scores`.
        flagged: (batch,), bool, score at or above the threshold.
        logits: (batch, classes), the victim's own.
        prediction: (batch,), int64, the victim's own.
        purified_text: the repaired text of flagged rows, None for rows that were not repaired.
        defended_prediction: (batch,), int64, the prediction after repair, ``REJECTED`` for rejected rows.
        confirmed: (batch,), bool, flagged and the repair changed the prediction (or the row was rejected).
    """

    scores: Scores
    flagged: Tensor
    logits: Tensor
    prediction: Tensor
    purified_text: list[str | None]
    defended_prediction: Tensor
    confirmed: Tensor


class Defense(nn.Module):
    """An inference-time defense: scores texts, flags those at or above a threshold, repairs or rejects them.

    A subclass implements :meth:`score`. One that repairs texts also implements :meth:`purify`; without it flagged
    texts are rejected. The thresholds come from clean validation texts alone.

    Args:
        fpr: share of clean texts, between 0 and 1, that the threshold may flag.
        seed: seed of the defense's own random choices; None takes the run's, or 0 outside of a run.

    Attributes:
        threshold: float32 scalar buffer, NaN until :meth:`calibrate`.
        budget_thresholds: float32, one a budget of ``BUDGETS``, NaN until :meth:`calibrate`.

    Raises:
        InputError: ``fpr`` is not between 0 and 1.
    """

    threshold: Tensor
    budget_thresholds: Tensor

    def __init__(self, fpr: float = 0.10, seed: int | None = None) -> None:
        super().__init__()
        if not 0 < fpr < 1:
            raise InputError("fpr", f"{fpr} is not a share of clean texts", "give a number above 0 and below 1")
        self.fpr = fpr
        self.seed = seed
        self.register_buffer("threshold", torch.tensor(math.nan))
        self.register_buffer("budget_thresholds", torch.full((len(BUDGETS),), math.nan))

    def score(self, victim: Victim, batch: Batch) -> Scores:
        """How suspicious each text of the batch looks."""
        raise TypeError(f"{type(self).__name__} does not implement score")

    def purify(self, victim: Victim, batch: Batch, flagged: Tensor, scores: Scores) -> list[str | None] | None:
        """Repaired texts of the flagged rows (None elsewhere), or None for a defense that rejects them."""
        return None

    def learn(self, victim: Victim, clean_batches: Iterable[Batch]) -> None:
        """Takes statistics or texts from clean validation rows, before :meth:`calibrate` and from other rows than it.

        Nothing to most defenses; one that needs it keeps what it takes in buffers or in its extra state, so that a
        checkpoint has it.
        """

    def begin_set(self, longest: int) -> None:
        """Told, before a set of texts is scored, how many tokens its longest has; nothing to most defenses."""

    def calibrate(self, victim: Victim, clean_batches: Iterable[Batch]) -> None:
        """Sets the thresholds from the scores of clean validation texts.

        Raises:
            InputError: there are no clean texts.
        """
        scores = [self.score(victim, batch).text.float().cpu() for batch in clean_batches]
        if not any(len(part) for part in scores):
            raise InputError("calibration", "no clean texts", "a threshold needs clean validation rows")
        clean = torch.cat(scores)
        self.threshold.copy_(threshold_at_fpr(clean, self.fpr))
        self.budget_thresholds.copy_(torch.stack([threshold_at_fpr(clean, budget) for budget in BUDGETS]))


def threshold_at_fpr(clean_scores: Tensor, fpr: float) -> Tensor:
    """The lowest threshold at which at most ``fpr`` of the clean scores are flagged (score >= threshold).

    Unlike an interpolated percentile it keeps the budget when scores are tied.

    Args:
        clean_scores: (texts,), float32.
        fpr: budget, between 0 and 1.

    Returns:
        Scalar, float32.

    >>> scores = torch.tensor([0.0, 0.0, 0.0, 1.0, 2.0])
    >>> (scores >= threshold_at_fpr(scores, 0.4)).sum().item()
    2
    >>> (scores >= threshold_at_fpr(scores, 0.6)).sum().item()  # three would flag the ties as well
    2
    """
    ordered = clean_scores.float().sort(descending=True).values
    allowed = int(fpr * len(ordered) + 1e-9)  # 0.29 * 100 is 28.999…
    lowest = ordered[min(allowed, len(ordered) - 1)]
    return torch.nextafter(lowest, torch.full_like(lowest, torch.inf))


@torch.no_grad()
def predict(victim: Victim, texts: Sequence[str]) -> Tensor:
    """The victim's predictions, (texts,), int64, on its own device."""
    batch = batch_of_texts(texts, victim.tokenizer, victim.max_length)
    device = victim.network.device
    logits: Tensor = victim.network(
        input_ids=batch["input_ids"].to(device), attention_mask=batch["attention_mask"].to(device)
    ).logits
    return logits.argmax(dim=-1)


@torch.no_grad()
def judge(defense: Defense, victim: Victim, batch: Batch, logits: Tensor | None = None) -> Verdict:
    """Scores, flags, repairs or rejects a batch, and predicts the repaired texts again.

    A flagged text whose prediction the repair does not change counts as not poisoned: it is flagged, not confirmed.

    Args:
        logits: (batch, classes), the victim's on the unrepaired texts, where they are known already.

    Raises:
        RuntimeError: the defense has no threshold yet.
    """
    if defense.threshold.isnan():
        raise RuntimeError(f"{type(defense).__name__} has no threshold; call calibrate with clean validation batches")
    scores = defense.score(victim, batch)
    flagged = scores.text >= defense.threshold.to(scores.text)
    if logits is None:
        logits = scores.logits
    if logits is None:
        logits = victim.network(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    prediction = logits.argmax(dim=-1)
    defended = prediction.clone()
    purified: list[str | None] = [None] * len(prediction)
    if flagged.any():
        repaired = defense.purify(victim, batch, flagged, scores)
        if repaired is None:
            defended[flagged] = REJECTED
        else:
            purified = repaired
            defended[flagged] = predict(victim, [text for text in repaired if text is not None]).to(defended)
    return Verdict(scores, flagged, logits, prediction, purified, defended, flagged & (defended != prediction))
