"""Scores and verdicts: what an inference-time defense says about the texts of a batch."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

#: the prediction of a rejected text, for which there is no class.
REJECTED = -1
#: what a defense may return for flagged texts, see :meth:`lightning_backdoor.defenses.defense.Defense.purify`.
Answer = list[str | None] | Tensor | None


class Scores(NamedTuple):
    """Anomaly scores of the texts of a batch and, from some defenses, of their tokens.

    Attributes:
        text: (batch,), float32, higher is more suspicious.
        tokens: (batch, length), float32, the score of the token at each position, -inf at positions without a score;
            None from defenses that do not score tokens.
        top: (batch,), int64, the position of the token that determines the text's score, -1 where there is none; or
            None.
        logits: (batch, classes), the victim's logits on the unchanged texts, from defenses that compute them anyway; or
            None.
        flagged_alone: (batch,), bool, from defenses that have studied a set: whether the text would be flagged, at the
            same budget, by a score that does not depend on the set; or None. Verdicts on the model count these flags:
            directions that a set has taught find more of its own texts than the budget allows, also in clean sets.
    """

    text: Tensor
    tokens: Tensor | None = None
    top: Tensor | None = None
    logits: Tensor | None = None
    flagged_alone: Tensor | None = None


class Verdict(NamedTuple):
    """The decisions of a defense about the texts of a batch.

    Attributes:
        scores: see :class:`Scores`.
        flagged: (batch,), bool, True where the score is at or above the threshold.
        logits: (batch, classes), the victim's logits on the unchanged texts.
        prediction: (batch,), int64, the victim's prediction on the unchanged texts.
        purified_text: per text, the repaired text of a flagged row; None where the row was not flagged, was rejected,
            or received logits or a prediction of the defense.
        defended_prediction: (batch,), int64, the prediction after the defense: in flagged rows the victim's prediction
            on the repaired text, or the class that the defense gave, or ``REJECTED``; in other rows ``prediction``.
        confirmed: (batch,), bool, True where the row is flagged and ``defended_prediction`` differs from
            ``prediction``, which includes rejected rows.
    """

    scores: Scores
    flagged: Tensor
    logits: Tensor
    prediction: Tensor
    purified_text: list[str | None]
    defended_prediction: Tensor
    confirmed: Tensor

    @property
    def flagged_alone(self) -> Tensor:
        """The flags by scores that do not depend on a set, (batch,), bool; see :class:`Scores`."""
        return self.flagged if self.scores.flagged_alone is None else self.scores.flagged_alone
