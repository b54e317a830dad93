"""Second opinion: texts of which the victim is much surer than a classifier that never saw poison.

The method is this library's own; ``docs/second_opinion.md`` has its figures, its failures and its history. A logistic
regression on the states of a *public* encoder, fitted on the trusted rows, is the companion (``companion.py``): weaker
than a fine-tuned victim, but free of the backdoor. Where the victim is much surer of its answer than the companion, the
answer is disputed. All disputed texts of a set, taken together, show the direction in which a backdoor moves the
victim's hidden states, along which its other texts are found (``disputed_directions.py``). Flagged texts are answered
by the companion. Parts of the victim itself, such as its early layers or a pruned copy, keep some of the backdoor and
cannot take the companion's place.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from lightning_backdoor.batch import Batch, Victim
from lightning_backdoor.defenses.companion import Companion, fit_companion, margin
from lightning_backdoor.defenses.defense import BUDGETS, Defense, Scores, threshold_at_fpr
from lightning_backdoor.defenses.disputed_directions import (
    FOLDS,
    along_directions,
    directions_of,
    disputed_sums,
    folds_of,
)
from lightning_backdoor.defenses.gradient_attention import kept_vocabulary, token_scores
from lightning_backdoor.defenses.hidden_states import MORE, check_classes, make_room
from lightning_backdoor.defenses.mahalanobis import Covariance, class_means, shrunk_covariance, squared_distances
from lightning_backdoor.defenses.readout_attention import readout_attention_and_gradient
from lightning_backdoor.defenses.second_opinion_states import (
    EncoderStates,
    VictimStates,
    depths,
    encoder_states,
    public_encoder,
    victim_states,
)
from lightning_backdoor.errors import InputError
from lightning_backdoor.language.public_encoder import DEFAULT_ENCODER
from lightning_backdoor.models.captures import Reads, shared
from lightning_backdoor.models.config_file import STATEMENT

TextPart = Literal["gap", "delta", "entropy"]
SetPart = Literal["text", "readout", "mean"]

#: shares of the depth: upper half and the layer below, for companion and delta; layers of F; layers of FM.
UPPER, READOUT, MEAN = (1 / 2, 2 / 3, 5 / 6, 1), (2 / 3, 5 / 6, 1), (1 / 3, 1 / 2, 2 / 3, 5 / 6)
#: a class that the victim predicts for fewer fit rows takes the mean of all of them.
FEWEST_PREDICTED = 5


class _Read(NamedTuple):
    """What is read of some texts, on the victim's device."""

    victim: VictimStates
    encoder: EncoderStates
    texts: list[str]
    labels: Tensor

    @property
    def predictions(self) -> Tensor:
        return self.victim.logits.argmax(dim=-1)


class SecondOpinion(Defense):
    """Second opinion: flags texts of which the victim is far surer than a clean companion, which then answers them.

    Trusted rows fit, threshold rows scale: ``Z(s)`` is s minus its mean over threshold rows, over their standard
    deviation. Layers are given for a victim of 6 layers; in others they lie at the same share of the depth.

    - *companion*: logistic regression with ``sum log-loss + penalty |W|²`` on the standardised means over all tokens of
      the public encoder's states after layers 3, 4, 5 and 6; m are its logits.
    - *gap*: ``margin(z) / a - margin(m) / b``, z the victim's logits, the margin that of the victim's predicted class
      over the best other one; a is the mean margin of the victim on trusted rows, b that of the companion's own
      predictions on threshold rows.
    - *delta*: ``sum over layers 3 to 6 of Z(sqrt((u - mean)' S^-1 (u - mean)))``, with u the state of the token that
      the victim's head reads, minus the encoder's where the encoder is the victim's base; mean and S, a Ledoit-Wolf
      covariance, of the trusted rows that are predicted alike.
    - *entropy*: the same distance of the entropies of that token's attention, in every layer and head, as a share of
      uniform attention's, standardised by trusted rows.
    - *text* is the score of one text: ``Z(gap) + Z(delta) + Z(entropy)``. Until a set is adopted it is the score.
    - A text is *disputed* if its score as a text is one that at most a share ``disputed`` of threshold rows reaches.
    - *readout*: ``sum over layers 4, 5, 6 of Z(w'(h - mean))``, h the state of the token that the head reads and w the
      direction of the disputed texts of the same prediction and the other fold
      (:func:`lightning_backdoor.defenses.disputed_directions.directions_of`).
    - *mean*: the same of the mean states of all tokens after layers 2, 3, 4 and 5.
    - With a set, the score is ``Z(text) + Z(readout) + Z(mean)``.

    A set is studied by :meth:`study`, whose sums may be added over processes and sets, and :meth:`adopt`. Trusted rows
    without labels, as in ``scan``, count as the class that the victim predicts. A text costs one pass of the victim and
    one of the encoder.

    Args:
        text_parts: parts of the score of one text, of ``gap``, ``delta`` and ``entropy``. Without ``entropy`` no
            attention is read.
        set_parts: parts of the score of a text of a set, of ``text``, ``readout`` and ``mean``; ``text`` alone studies
            no set. The smallest variant is ``gap`` with ``readout`` and ``mean``.
        encoder: hub name, folder or ``package://`` name of the public encoder; None takes the model that the victim
            says it was fine-tuned from.
        base_known: whether the encoder is the model that the victim was fine-tuned from, so that *delta* takes
            differences; None asks the victim's own record.
        penalty: weight of the companion's penalty, above 0.
        disputed: share of clean texts, above 0 and below 1, that may be disputed.
        fpr: share of clean texts, above 0 and below 1, that the threshold may flag.
        seed: unused, since nothing is drawn.

    Raises:
        InputError: a value is out of range (here); there are too few trusted rows, or the encoder cannot be loaded
            (:meth:`check_reference`); the victim's attention cannot be read, or its base is another model (when texts
            are read).

    Example::

        defense = SecondOpinion()
        defense.learn(victim, trusted_batches)
        defense.calibrate(victim, clean_threshold_batches)
        defense.adopt(defense.study(victim, batches))  # leave this out to judge texts one by one
        scores = defense.score(victim, batch)  # scores.text: (batch,)
    """

    reads: ClassVar[Reads] = frozenset({"hidden_states", "attention"})
    learns_from: ClassVar[Literal["reference", "trusted"]] = "trusted"
    #: names of the buffers, of any size.
    learned: ClassVar[tuple[str, ...]] = (
        *(f"companion_{field}" for field in Companion._fields),
        *(f"{of}_{field}" for of in ("delta", "entropy", "set") for field in ("center", *Covariance._fields)),
        *("entropy_scale", "margins", "delta_scale", "text_scale"),
        *("kept_features", "kept_predictions", "kept_folds", "kept_text"),
        *("sums", "directions", "direction_scale", "set_scale"),
    )

    def __init__(
        self,
        text_parts: Sequence[TextPart] = ("gap", "delta", "entropy"),
        set_parts: Sequence[SetPart] = ("text", "readout", "mean"),
        encoder: str | None = DEFAULT_ENCODER,
        base_known: bool | None = None,
        penalty: float = 1000.0,
        disputed: float = 0.10,
        fpr: float = 0.05,
        seed: int | None = None,
    ) -> None:
        super().__init__(fpr, seed)
        _check_parts("text_parts", text_parts, get_args(TextPart))
        _check_parts("set_parts", set_parts, get_args(SetPart))
        if not penalty > 0:
            raise InputError("penalty", f"{penalty} does not bound the companion's weights", "give a number above 0")
        if not 0 < disputed < 1:
            raise InputError("disputed", f"{disputed} is not a share of clean texts", "give one above 0 and below 1")
        self.text_parts = tuple(part for part in get_args(TextPart) if part in text_parts)
        self.set_parts = tuple(part for part in get_args(SetPart) if part in set_parts)
        self.encoder = encoder
        self.base_known = base_known
        self.penalty = penalty
        self.disputed = disputed
        for name in self.learned:
            self.register_buffer(name, torch.empty(0))
        self.register_load_state_dict_pre_hook(make_room)  # type: ignore[no-untyped-call]

    @property
    def studies(self) -> bool:
        """Whether the score depends on the set."""
        return self.set_parts != ("text",)

    def check_reference(self, labels: Sequence[int], classes: int) -> None:
        """Checks that every class has a trusted row, and that the encoder can be loaded."""
        check_classes(labels, classes)
        if self.encoder is not None:
            public_encoder(self.encoder, torch.device("cpu"))

    @torch.no_grad()
    def learn(self, victim: Victim, clean_batches: Iterable[Batch]) -> None:
        """Fits the companion and the clean distributions on trusted rows.

        Raises:
            InputError: there are too few rows.
        """
        rows = self._read_all(victim, clean_batches)
        predictions, classes = rows.predictions, rows.victim.logits.shape[1]
        labels = rows.labels.where(rows.labels >= 0, predictions)
        check_classes(labels.tolist(), classes)
        found: dict[str, Tensor] = {}
        companion = fit_companion(_flat(rows.encoder.mean), labels, self.penalty)
        found |= {f"companion_{field}": value for field, value in companion._asdict().items()}
        entropy = rows.victim.entropy
        found["entropy_scale"] = torch.stack([entropy.mean(dim=0), entropy.std(dim=0, correction=0)])
        shifts, features = self._shifts(rows), self._features(rows)
        for of, states in (("delta", shifts), ("entropy", _standard(entropy, found["entropy_scale"])[None]), ("set", features)):
            if states.numel():
                center = class_means(states, predictions, classes, FEWEST_PREDICTED)
                covariance = shrunk_covariance(states - center[:, predictions], shrinkage=None)
                found |= {f"{of}_center": center, **{f"{of}_{k}": v for k, v in covariance._asdict().items()}}
        self._keep(victim, **found, margins=margin(rows.victim.logits, predictions).mean()[None])
