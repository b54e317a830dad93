"""The gate of an inference-time defense: nothing is repaired while nothing in the set speaks of a backdoor."""

from __future__ import annotations

import math
from typing import NamedTuple

from lightning.pytorch import Trainer

from lightning_backdoor.callbacks.processes import result_of_each
from lightning_backdoor.callbacks.set_study import set_batches
from lightning_backdoor.callbacks.shared import batches_once
from lightning_backdoor.data import BackdoorDataModule
from lightning_backdoor.defenses.clean_flags import CleanFlags, clean_flags
from lightning_backdoor.defenses.defense import Defense, finite_scores
from lightning_backdoor.models.captures import sharing
from lightning_backdoor.models.precision import evaluation_precision
from lightning_backdoor.outputs.exact_tests import SIGNIFICANT, log_p_flagged, p_text
from lightning_backdoor.outputs.word_inventory import WordInventory, words_text
from lightning_backdoor.victim import TextClassifier


class Gate(NamedTuple):
    """What all texts of a set, before the first is judged, say about a backdoor.

    Attributes:
        flagged: number of flagged texts.
        texts: number of texts.
        log_p: natural logarithm of the p-value of the number of flagged texts.
        words: the words that stand out among the flagged texts, as they are shown.
    """

    flagged: int
    texts: int
    log_p: float
    words: str

    @property
    def is_open(self) -> bool:
        """Whether flagged texts are repaired: too many are flagged (p < 0.01), or a word stands out among them."""
        return self.log_p < math.log(SIGNIFICANT) or bool(self.words)

    def said(self) -> str:
        """One sentence about it.

        >>> Gate(30, 600, math.log(0.53), "").said()
        'The gate is shut, nothing is repaired: 30 of a set of 600 texts are flagged (p = 0.53); no word stands out.'
        """
        begin = "The gate is open" if self.is_open else "The gate is shut, nothing is repaired"
        words = f"words that stand out: {self.words}" if self.words else "no word stands out"
        share = f"{self.flagged} of a set of {self.texts} texts are flagged (p = {p_text(self.log_p)})"
        return f"{begin}: {share}; {words}."


def gate_of(
    defense: Defense, trainer: Trainer, victim: TextClassifier, data: BackdoorDataModule, prevalence: float | None
) -> Gate:
    """Flags the clean and poisoned texts of the evaluation that begins, without labels or flags.

    Each process reads its own texts; the gate is that of all of them.

    Args:
        defense: a calibrated defense, which has not studied the set.
        trainer: at the start of a validation or test.
        victim: the model under attack.
        data: has the clean threshold rows that calibrated the defense.
        prevalence: poisoned rows per clean row that the set holds; None for all poisoned rows.

    Raises:
        InputError: the rows cannot be drawn by ``prevalence``, or the defense failed in another process.
    """
    name = type(defense).__name__

    def flags() -> tuple[CleanFlags, WordInventory]:
        clean = clean_flags(defense, victim, batches_once(trainer, victim, data.threshold_dataloader))
        inventory = WordInventory()
        for batch in set_batches(trainer, prevalence, f"flagging all texts by {name}"):
            scores = finite_scores(defense, victim, batch).text
            inventory.add(batch["text"], (scores >= defense.threshold.to(scores)).tolist())
        return clean, inventory

    with evaluation_precision(trainer), sharing(victim.captures):
        (clean, first), *others = result_of_each(trainer, name, flags)  # devices may differ in a clean score's digits
    for _, other in others:
        first.merge(other)
    log_p = log_p_flagged(first.flagged, first.texts, clean.allowed, clean.texts)
    return Gate(first.flagged, first.texts, log_p, words_text(first.standing_out()))
