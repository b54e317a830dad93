"""How many of the clean threshold rows a calibrated defense flags, or may flag by its budget."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch

from lightning_backdoor.batch import Batch, Victim
from lightning_backdoor.defenses.defense import Defense, finite_scores, threshold_at_fpr
from lightning_backdoor.outputs.exact_tests import allowed_by


class CleanFlags(NamedTuple):
    """The flags of the clean texts that set a threshold, with which the flags of other texts are compared.

    Attributes:
        texts: number of the clean texts.
        allowed: number of them that the budget allows to be flagged; that are flagged, if the threshold is not the one
            of the budget.
        by_budget: whether the threshold is the one of the budget.
    """

    texts: int
    allowed: int
    by_budget: bool


def clean_flags(defense: Defense, victim: Victim, batches: Iterable[Batch]) -> CleanFlags:
    """How many clean texts a calibrated defense may flag; see :class:`CleanFlags`.

    The texts are scored again only if the defense sets its threshold itself.

    Args:
        defense: a calibrated defense, with the threshold that is meant: one that studies has another one afterwards.
        victim: the model under attack.
        batches: the clean texts that calibrated it.
    """
    if type(defense).calibrate is Defense.calibrate and not defense.studies:
        texts = sum(len(batch["text"]) for batch in batches)
        return CleanFlags(texts, allowed_by(defense.fpr, texts), by_budget=True)
    scores = torch.cat([finite_scores(defense, victim, batch).text.float().cpu() for batch in batches])
    threshold = defense.threshold.float().cpu()
    if bool(threshold_at_fpr(scores, defense.fpr) == threshold):
        return CleanFlags(len(scores), allowed_by(defense.fpr, len(scores)), by_budget=True)
    return CleanFlags(len(scores), int((scores >= threshold).sum()), by_budget=False)
