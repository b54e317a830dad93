"""Flagged share: whether a model has more flagged texts than the false positives of a defense explain."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import torch

from lightning_backdoor.defenses.inspection import ModelVerdict


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
        ``score`` is -log10 of the p-value, finite however small that is, and 0 where no text is flagged;
        ``suspected_label`` the most frequent prediction among flagged texts, of several the lowest index, None where no
        text is flagged; ``evidence`` holds ``flagged``, ``texts``, ``budget`` and ``p_value``, which is 0 below 1e-323.

    Raises:
        ValueError: the numbers contradict each other, or the budget is out of range.

    >>> verdict = flagged_share_verdict(flagged=3, texts=4, budget=0.5, predictions_of_flagged=[1, 0, 1])
    >>> verdict.suspected_label, verdict.evidence
    (1, {'flagged': 3, 'texts': 4, 'budget': 0.5, 'p_value': 0.3125})
    """
    if not 0 <= flagged <= texts or len(predictions_of_flagged) != flagged:
        raise ValueError(f"{flagged} of {texts} texts flagged, and {len(predictions_of_flagged)} predictions of them")
    if not 0 < budget < 1:
        raise ValueError(f"a budget of {budget} is not above 0 and below 1")
    log_p = _log_binomial_tail(flagged, texts, budget)
    counts = Counter(predictions_of_flagged)
    label = min(counts, key=lambda index: (-counts[index], index)) if counts else None
    evidence = {"flagged": flagged, "texts": texts, "budget": budget, "p_value": math.exp(log_p)}
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
