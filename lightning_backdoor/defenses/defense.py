"""The base class of inference-time defenses, and ``judge``, which turns their scores into verdicts."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from lightning_backdoor.batch import Batch, Victim, batch_of_texts, unlabelled
from lightning_backdoor.data.cleaning import DataDefense
from lightning_backdoor.defenses.verdict import REJECTED, Answer, Scores, Verdict
from lightning_backdoor.errors import InputError
from lightning_backdoor.models.captures import Reads, plain_logits
from lightning_backdoor.models.divergence import check_logits
from lightning_backdoor.outputs.exact_tests import allowed_by

__all__ = [
    "BUDGETS",
    "REJECTED",
    "Answer",
    "DataDefense",
    "Defense",
    "Scores",
    "Verdict",
    "Victim",
    "finite_scores",
    "judge",
    "predict",
    "threshold_at_fpr",
    "victim_logits",
]

#: FPR budgets at which detection is reported in addition to the defense's own budget.
BUDGETS = (0.01, 0.05, 0.10)


class Defense(nn.Module, ABC):
    """Base class of inference-time defenses: scores texts, flags texts at or above a threshold, and repairs them.

    A subclass implements :meth:`score`. Flagged texts are rejected, unless a subclass also implements :meth:`purify`.
    Thresholds come from clean validation texts alone. A subclass that also implements :meth:`study` sees all texts of a
    set, without labels, before it judges the first.

    Args:
        fpr: budget: share of clean texts, above 0 and below 1, that the threshold may flag.
        seed: seed of the defense's own random choices; None takes the seed of the run, or 0 outside of a run.

    Attributes:
        reads: what the defense reads of the network inside, a set of ``hidden_states`` (by
            :func:`lightning_backdoor.models.captures.readout_states`), ``attention`` and ``gradients``; nothing by
            default. Where a defense reads hidden states, the victim's own forward pass keeps them, so that they cost
            no pass of their own.
        learns_from: the clean rows that :meth:`learn` is given: the ``reference`` rows, or all ``trusted`` ones, which
            are the selection and the reference rows.
        threshold: float32 scalar buffer, NaN until :meth:`calibrate` sets it.
        budget_thresholds: float32 buffer, one threshold per budget of ``BUDGETS``, NaN until :meth:`calibrate`.

    Raises:
        InputError: ``fpr`` is not above 0 and below 1.
    """

    reads: ClassVar[Reads] = frozenset()
    learns_from: ClassVar[Literal["reference", "trusted"]] = "reference"
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

    @property
    def model_precision(self) -> str | None:
        """The precision of a model of the defense's own, which is recorded with the results; None if it has none."""
        return None

    @abstractmethod
    def score(self, victim: Victim, batch: Batch) -> Scores:
        """Computes anomaly scores of the texts of a batch; must not read the labels and flags of the batch."""

    def purify(self, victim: Victim, batch: Batch, flagged: Tensor, scores: Scores) -> Answer:
        """Repairs or classifies the flagged texts of a batch; by default all are rejected.

        Args:
            victim: the model under attack.
            batch: all texts, flagged or not; must not read their labels and flags.
            flagged: (batch,), bool, True where the text is flagged.
            scores: what :meth:`score` returned for the batch.

        Returns:
            One of the following; of the first three, only the entries of flagged rows are used.

            - repaired texts, one entry per row, on which the victim predicts again; None rejects the row;
            - logits of the defense, (batch, classes), floating point;
            - predictions of the defense, (batch,), int64, ``REJECTED`` allowed;
            - None: all flagged texts are rejected.
        """
        return None

    @property
    def explains(self) -> bool:
        """Whether the defense scores the tokens of flagged texts: whether :meth:`explain` is implemented."""
        return type(self).explain is not Defense.explain

    def explain(self, victim: Victim, batch: Batch) -> Scores | None:
        """Scores the tokens of flagged texts, for defenses whose :meth:`score` scores none; by default returns None.

        No decision depends on it: it shows where in a text the reason may lie. It is called for texts that are shown
        or written, and does not count in the overhead.

        Args:
            victim: the model under attack.
            batch: the flagged texts; must not read their labels and flags.

        Returns:
            Scores of which ``tokens`` and ``top`` are used; None where the defense cannot say.
        """
        return None

    def learn(self, victim: Victim, clean_batches: Iterable[Batch]) -> None:
        """Learns statistics or texts from the clean rows of :attr:`learns_from`, before :meth:`calibrate`.

        By default it does nothing.

        What is learned should be kept in buffers or in the extra state, so that checkpoints contain it.
        """

    def check_reference(self, labels: Sequence[int], classes: int) -> None:
        """Checks, before a victim is trained, that :meth:`learn` can use the clean rows; by default does nothing.

        Args:
            labels: of the rows that :meth:`learn` will be given.
            classes: number of classes of the victim.

        Raises:
            InputError: there are too few rows, or rows of too few classes.
        """

    def calibrate(self, victim: Victim, clean_batches: Iterable[Batch]) -> None:
        """Sets the thresholds from the scores of the clean threshold rows, which :meth:`learn` has not seen.

        Raises:
            InputError: ``clean_batches`` is empty, or a score is not finite.
            Diverged: the victim's logits are not finite.
        """
        scores = [finite_scores(self, victim, batch).text.float().cpu() for batch in clean_batches]
        if not any(len(part) for part in scores):
            raise InputError("calibration", "no clean texts", "a threshold needs clean validation rows")
        clean = torch.cat(scores)
        self.threshold.copy_(threshold_at_fpr(clean, self.fpr))
        self.budget_thresholds.copy_(torch.stack([threshold_at_fpr(clean, budget) for budget in BUDGETS]))

    @property
    def studies(self) -> bool:
        """Whether the defense sees the texts of a set before it judges them: whether :meth:`study` is implemented."""
        return type(self).study is not Defense.study

    def study(self, victim: Victim, batches: Iterable[Batch]) -> Tensor:
        """Reads the texts of a set that is to be judged, before any of them is judged; after :meth:`calibrate`.

        It is implemented together with :meth:`adopt`. Each process is given its own share of the texts.

        Args:
            victim: the model under attack.
            batches: the texts, an unknown part of them poisoned, in any order. Labels and indices are -1, flags False
                and spans empty, also in poisoned rows.

        Returns:
            Sums over the texts, float64, on the processor, of a shape that does not depend on the texts. The sums of
            several processes, or of sets read at different times, are added.
        """
        raise NotImplementedError(f"{type(self).__name__} does not study a set")

    def adopt(self, sums: Tensor) -> None:
        """Takes the sums of all texts that were studied, and sets the thresholds anew.

        Args:
            sums: what :meth:`study` returned, added over processes and sets.
        """
        raise NotImplementedError(f"{type(self).__name__} does not study a set")


def threshold_at_fpr(clean_scores: Tensor, fpr: float) -> Tensor:
    """The lowest threshold at which at most ``fpr`` of the clean scores are flagged (score >= threshold).

    Unlike an interpolated percentile, it stays within the budget when scores are tied.

    Args:
        clean_scores: (texts,), float32, at least one.
        fpr: budget, above 0 and below 1.

    Returns:
        Scalar, float32.

    Raises:
        ValueError: a score is NaN or infinite.

    >>> scores = torch.tensor([0.0, 0.0, 0.0, 1.0, 2.0])
    >>> (scores >= threshold_at_fpr(scores, 0.4)).sum().item()
    2
    >>> (scores >= threshold_at_fpr(scores, 0.6)).sum().item()  # flagging three would flag all ties
    2
    """
    if not clean_scores.isfinite().all():
        raise ValueError(f"{int((~clean_scores.isfinite()).sum())} of {len(clean_scores)} scores are NaN or infinite")
    ordered = clean_scores.float().sort(descending=True).values
    lowest = ordered[min(allowed_by(fpr, len(ordered)), len(ordered) - 1)]
    return torch.nextafter(lowest, torch.full_like(lowest, torch.inf))


def finite_scores(defense: Defense, victim: Victim, batch: Batch) -> Scores:
    """A defense's scores of a batch, checked to be finite; scores of tokens may be infinite.

    Raises:
        InputError: a text's score is NaN or infinite.
        Diverged: the defense returned logits of the victim that are NaN or infinite.
    """
    scores = defense.score(victim, batch)
    if scores.logits is not None:
        check_logits(scores.logits)
    wrong = int((~scores.text.isfinite()).sum())
    if wrong:
        problem = f"{wrong} of {len(scores.text)} scores are NaN or infinite"
        raise InputError(
            type(defense).__name__, problem, "a score must be finite; see that the victim has not diverged"
        )
    return scores


@torch.no_grad()
def predict(victim: Victim, texts: Sequence[str]) -> Tensor:
    """The victim's predictions on texts, (texts,), int64, on the victim's device.

    Raises:
        Diverged: a logit is NaN or infinite.
    """
    batch = batch_of_texts(texts, victim.tokenizer, victim.max_length)
    device = victim.network.device
    logits = plain_logits(victim.network, batch["input_ids"].to(device), batch["attention_mask"].to(device))
    check_logits(logits)
    return logits.argmax(dim=-1)


@torch.no_grad()
def judge(defense: Defense, victim: Victim, batch: Batch, logits: Tensor | None = None, repair: bool = True) -> Verdict:
    """Applies a calibrated defense to a batch: scores, flags, and repaired or rejected texts.

    A flagged text whose prediction stays the same after the defense is not confirmed. The defense is shown the batch
    without labels, poison flags, spans and indices.

    Args:
        defense: a calibrated defense.
        victim: the model under attack, in evaluation mode.
        batch: the texts, on the victim's device.
        logits: (batch, classes), the victim's logits on the unchanged texts, if already computed.
        repair: whether flagged texts are repaired or rejected; otherwise they keep the victim's prediction.

    Raises:
        RuntimeError: the defense has no threshold yet.
        InputError: a score is NaN or infinite.
        Diverged: a logit of the victim is NaN or infinite.
        ValueError: :meth:`Defense.purify` returned something that is not allowed.
    """
    if defense.threshold.isnan():
        raise RuntimeError(f"{type(defense).__name__} has no threshold; call calibrate with clean validation batches")
    if logits is not None:
        check_logits(logits)
    batch = unlabelled(batch)
    scores = finite_scores(defense, victim, batch)
    flagged = scores.text >= defense.threshold.to(scores.text)
    if logits is None:
        logits = victim_logits(victim, batch, scores)
    prediction = logits.argmax(dim=-1)
    defended = prediction.clone()
    purified: list[str | None] = [None] * len(prediction)
    if repair and flagged.any():
        answer = defense.purify(victim, batch, flagged, scores)
        if isinstance(answer, list):
            if len(answer) != len(prediction):
                raise _wrong_answer(defense, f"{len(answer)} texts", logits)
            purified = [text if flag else None for text, flag in zip(answer, flagged.tolist(), strict=True)]
            answer = _repredicted(victim, purified, prediction)
        elif answer is not None:
            answer = _own_predictions(defense, answer, flagged, logits)
        defended[flagged] = REJECTED if answer is None else answer[flagged].to(defended)
    return Verdict(scores, flagged, logits, prediction, purified, defended, flagged & (defended != prediction))


@torch.no_grad()
def victim_logits(victim: Victim, batch: Batch, scores: Scores) -> Tensor:
    """The victim's logits on the unchanged texts, (batch, classes); computed only if scoring did not return them.

    Raises:
        Diverged: a logit is NaN or infinite.
    """
    if scores.logits is not None:
        return scores.logits
    logits = plain_logits(victim.network, batch["input_ids"], batch["attention_mask"])
    check_logits(logits)
    return logits


def _repredicted(victim: Victim, purified: list[str | None], prediction: Tensor) -> Tensor:
    """The victim's predictions on the repaired texts, ``REJECTED`` for rows without a repaired text."""
    predictions = torch.full_like(prediction, REJECTED)
    rows = [row for row, text in enumerate(purified) if text is not None]
    if rows:
        predictions[rows] = predict(victim, [text for text in purified if text is not None]).to(predictions)
    return predictions


def _own_predictions(defense: Defense, answer: object, flagged: Tensor, logits: Tensor) -> Tensor:
    """A defense's own logits or predictions as predictions, (batch,), int64; checked in flagged rows."""
    if not isinstance(answer, Tensor):
        raise _wrong_answer(defense, f"a {type(answer).__name__}", logits)
    texts, classes = logits.shape
    answer = answer.to(logits.device)
    if answer.is_floating_point() and answer.shape == logits.shape:
        if not answer[flagged].isfinite().all():
            raise _wrong_answer(defense, "logits that are not finite", logits)
        return answer.argmax(dim=-1)
    said = f"a tensor of {answer.dtype} and shape {tuple(answer.shape)}"
    if answer.dtype != torch.int64 or answer.shape != (texts,):
        raise _wrong_answer(defense, said, logits)
    lowest, highest = int(answer[flagged].min()), int(answer[flagged].max())
    if lowest < REJECTED or highest >= classes:
        raise _wrong_answer(defense, f"classes from {lowest} to {highest}", logits)
    return answer


def _wrong_answer(defense: Defense, said: str, logits: Tensor) -> ValueError:
    texts, classes = logits.shape
    return ValueError(
        f"{type(defense).__name__}.purify returned {said} for {texts} texts and {classes} classes; it may return"
        f" {texts} texts, a float tensor of shape ({texts}, {classes}), an int64 tensor of shape ({texts},) with"
        f" classes from {REJECTED} to {classes - 1}, or None"
    )
