"""Flagged share: an inspection that tests whether more texts are flagged than false positives explain.

A defense is calibrated to flag at most a share of clean texts, its budget. With a clean model it flags about this share
of all texts; with a backdoored model it flags poisoned texts in addition. The number of flagged texts among trusted
texts and an incoming stream is compared with its exact distribution for clean texts, which allows for the chance in a
threshold that was set on few texts: with N threshold rows, of which the budget allows a, it is
BetaBinomial(n, a + 1, N - a). A binomial test with the budget as probability would take that chance for evidence, the
more so the longer the stream. Threshold rows, trusted texts and clean texts of the stream are assumed to be drawn from
the same source. Rows from which the defense learned are not counted: it flags fewer of them than of other clean texts,
so that the share would seem lower than it is. A defense that studies sets judges each text by itself here, since
directions that a set has taught find more of its own texts than the budget allows, also in clean sets, which the test
would take for a backdoor.

The evidence has the words that stand out among the flagged texts (:mod:`lightning_backdoor.outputs.word_inventory`).
Scores are comparable between models that were calibrated on the same number of texts and inspected on the same number
of texts.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Literal

import torch

from lightning_backdoor.batch import Batch, Victim, taken
from lightning_backdoor.defenses.defense import Defense, finite_scores, threshold_at_fpr, victim_logits
from lightning_backdoor.defenses.gradient_attention import GradientAttention
from lightning_backdoor.defenses.inspection import Inspection, ModelVerdict
from lightning_backdoor.errors import InputError
from lightning_backdoor.outputs.exact_tests import allowed_by, log_p_flagged
from lightning_backdoor.outputs.word_inventory import WordInventory, words_text


def flagged_share_verdict(
    flagged: int, texts: int, budget: float, clean_texts: int, predictions_of_flagged: Sequence[int], words: str = ""
) -> ModelVerdict:
    """Whether the share of flagged texts is above a budget; see
    :func:`lightning_backdoor.outputs.exact_tests.log_p_flagged`.

    Args:
        flagged: number of flagged texts.
        texts: number of all texts.
        budget: share of clean texts, above 0 and below 1, that the threshold may flag.
        clean_texts: number of clean texts that set the threshold.
        predictions_of_flagged: the victim's class index for each flagged text.
        words: the words that stand out, as they are shown.

    Returns:
        ``score`` is -log10 of the p-value, finite even for the smallest p-values, and 0 where no text is flagged;
        ``suspected_label`` is the most frequent prediction among flagged texts (on ties the lowest index), None where
        no text is flagged; ``evidence`` contains ``flagged``, ``texts``, ``budget``, ``clean_texts``, ``p_value``,
        which is 0 below 1e-323, and ``words``.

    Raises:
        ValueError: the numbers contradict each other, or the budget is out of range.

    >>> verdict = flagged_share_verdict(3, texts=4, budget=0.25, clean_texts=4, predictions_of_flagged=[1, 0, 1])
    >>> verdict.suspected_label, round(verdict.score, 4), round(verdict.evidence["p_value"], 4)
    (1, 0.6146, 0.2429)
    """
    if not 0 <= flagged <= texts or len(predictions_of_flagged) != flagged:
        raise ValueError(f"{flagged} of {texts} texts flagged, and {len(predictions_of_flagged)} predictions of them")
    if not 0 < budget < 1:
        raise ValueError(f"a budget of {budget} is not above 0 and below 1")
    if clean_texts < 1:
        raise ValueError(f"a threshold that was set on {clean_texts} clean texts")
    log_p = log_p_flagged(flagged, texts, allowed_by(budget, clean_texts), clean_texts)
    counts = Counter(predictions_of_flagged)
    label = min(counts, key=lambda index: (-counts[index], index)) if counts else None
    evidence: dict[str, float | int | str] = {
        "flagged": flagged,
        "texts": texts,
        "budget": budget,
        "clean_texts": clean_texts,
        "p_value": math.exp(log_p),
        "words": words,
    }
    return ModelVerdict(abs(log_p) / math.log(10), label, evidence)


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
        self._clean_texts = 0
        self._learned: set[str] = set()

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

    def check_reference(self, labels: Sequence[int], classes: int) -> None:
        """Checks that the defense can learn from the clean rows."""
        self.defense.check_reference(labels, classes)

    def learn(self, victim: Victim, clean_batches: Iterable[Batch]) -> None:
        """Calls the defense's ``learn`` with clean rows, which are not counted if the defense learns from them."""
        self._learned.clear()
        learns = type(self.defense).learn is not Defense.learn
        self.defense.learn(victim, self._noted(clean_batches) if learns else clean_batches)

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
        self.threshold, self._clean_texts = threshold_at_fpr(scores, self.defense.fpr), len(scores)

    def inspect(self, victim: Victim, clean_batches: Iterable[Batch], stream: Iterable[Batch] = ()) -> ModelVerdict:
        """Counts the flagged texts among the trusted ones and the stream; see :func:`flagged_share_verdict`.

        The rows that were given to :meth:`learn` are not counted, if the defense learns.

        Raises:
            RuntimeError: :meth:`calibrate` has not been called.
            InputError: there is no text to count, or a score is not finite.
        """
        if self.threshold.isnan():
            raise RuntimeError("FlaggedShare has no threshold; call calibrate with clean validation batches")
        inventory = WordInventory()
        predictions: list[int] = []
        for batch in chain(self._not_learned(clean_batches), stream):
            scores = finite_scores(self.defense, victim, batch)
            flagged = scores.text.float() >= self.threshold.to(scores.text.device)
            inventory.add(batch["text"], flagged.tolist())
            predictions += victim_logits(victim, batch, scores).argmax(dim=-1)[flagged].tolist()
        if not inventory.texts:
            problem = f"there is no text to count, other than those from which {type(self.defense).__name__} learned"
            raise InputError("stream", problem, "give a stream of texts")
        return flagged_share_verdict(
            inventory.flagged,
            inventory.texts,
            self.defense.fpr,
            self._clean_texts,
            predictions,
            words_text(inventory.standing_out()),
        )

    def _noted(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Batches of rows from which the defense learns."""
        for batch in batches:
            self._learned.update(batch["text"])
            yield batch

    def _not_learned(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Batches without the texts from which the defense learned."""
        for batch in batches:
            counted = [text not in self._learned for text in batch["text"]]
            if all(counted):
                yield batch
            elif any(counted):
                yield taken(batch, torch.tensor(counted, device=batch["input_ids"].device))
