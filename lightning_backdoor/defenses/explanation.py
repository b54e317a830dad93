"""The explanation of a verdict: token scores of flagged texts, from defenses that locate the reason after flagging."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_backdoor.batch import Batch, Victim, taken, unlabelled
from lightning_backdoor.defenses.defense import Defense
from lightning_backdoor.defenses.verdict import Verdict


def explained(defense: Defense, victim: Victim, batch: Batch, verdict: Verdict) -> Verdict:
    """A verdict with the defense's token scores of flagged texts, if its scores have none.

    Args:
        defense: the defense.
        victim: the model under attack, in evaluation mode.
        batch: the texts; the defense is shown them without labels and flags.
        verdict: the verdict on them.

    Returns:
        The verdict, in which ``scores.tokens`` is -inf and ``scores.top`` is -1 in the rows that are not flagged.
        Unchanged where the scores have tokens, or the defense does not explain.
    """
    flagged = verdict.flagged
    if verdict.scores.tokens is not None or not defense.explains:
        return verdict
    tokens = torch.full(batch["input_ids"].shape, -torch.inf, device=flagged.device)
    top = torch.full(flagged.shape, -1, dtype=torch.int64, device=flagged.device)
    if flagged.any():
        found = defense.explain(victim, taken(unlabelled(batch), flagged))
        if found is None or found.tokens is None:
            return verdict
        tokens[flagged] = found.tokens.to(tokens)
        top[flagged] = _highest(found.tokens).to(top) if found.top is None else found.top.to(top)
    return verdict._replace(scores=verdict.scores._replace(tokens=tokens, top=top))


def _highest(tokens: Tensor) -> Tensor:
    """The position of the highest score of each text; -1 where no token has a score."""
    return tokens.argmax(dim=1).masked_fill(tokens.isneginf().all(dim=1), -1)
