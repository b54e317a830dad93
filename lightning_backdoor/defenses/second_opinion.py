"""Second opinion: texts of which the victim is much surer than a classifier that never saw poison.

The method is this library's own; ``docs/second_opinion.md`` has its figures, its failures and its history. A logistic
regression on the states of a *public* encoder, fitted on the trusted rows, is the companion (``companion.py``): weaker
than a fine-tuned victim, but free of the backdoor. Where the victim is much surer of its answer than the companion, the
answer is disputed. All disputed texts of a set, taken together, show the direction in which a backdoor moves the
victim's hidden states, along which its other texts are found (``disputed_directions.py``). Flagged texts are answered
by the companion, unless it is uncertain and the flag is a weak one. Parts of the victim itself, such as its early
layers or a pruned copy, keep some of the backdoor and cannot take the companion's place.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from lightning_backdoor.batch import Batch, Victim
from lightning_backdoor.defenses.companion import Companion, fit_companion
from lightning_backdoor.defenses.defense import BUDGETS, Defense, Scores, threshold_at_fpr, victim_logits
from lightning_backdoor.defenses.disputed_directions import (
    FOLDS,
    along_directions,
    directions_of,
    disputed_sums,
    folds_of,
)
from lightning_backdoor.defenses.hidden_states import check_classes, make_room
from lightning_backdoor.defenses.mahalanobis import PredictedAlike, predicted_alike
from lightning_backdoor.defenses.margin import margin
from lightning_backdoor.defenses.readout_tokens import readout_token_scores
from lightning_backdoor.defenses.second_opinion_reading import Read, Reader, SetPart, TextPart, checked_parts, float_on
from lightning_backdoor.defenses.standardising import scale_of, standardised
from lightning_backdoor.defenses.text_states import public_encoder
from lightning_backdoor.errors import InputError
from lightning_backdoor.language.public_encoder import DEFAULT_ENCODER
from lightning_backdoor.models.captures import Reads

#: a class that the victim predicts for fewer trusted rows takes the mean of all of them.
FEWEST_PREDICTED = 5
#: texts that this budget flags are answered by the companion however certain it is.
STRICT = BUDGETS.index(0.01)


class SecondOpinion(Defense):
    """Second opinion: flags texts of which the victim is far surer than a clean companion, which answers most of them.

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
    - A flagged text is answered by the companion if its score is one that at most 1 % of threshold rows reach, or if
      the companion's margin for its own answer is at least ``certainty * b``. The victim's answer to others stands:
      most of them are clean, and the companion is the weaker model.

    A set is studied by :meth:`study`, whose sums may be added over processes and sets, and :meth:`adopt`. Trusted rows
    without labels, as in ``scan``, count as the class that the victim predicts. A text costs one pass of the victim and
    one of the encoder.

    Args:
        text_parts: parts of the score of one text, of ``gap``, ``delta`` and ``entropy``. Without ``entropy`` no
            attention is read.
        set_parts: parts of the score of a text of a set, of ``text``, ``readout`` and ``mean``; ``text`` alone studies
            no set. The smallest variant is ``gap`` with ``readout`` and ``mean``.
        encoder: hub name, folder or ``package://`` name of the public encoder; None takes the model that the victim's
            hyperparameters name, which is for victims that you trained: others may name a poisoned one.
        base_known: whether the encoder is the model that the victim was fine-tuned from, so that *delta* takes
            differences; None asks the victim's own record.
        penalty: weight of the companion's penalty, above 0.
        disputed: share of clean texts, above 0 and below 1, that may be disputed.
        certainty: the smallest margin, in means of the companion's margins, with which it answers a text that is
            flagged, but not by a budget of 1 %; with 0 it answers all flagged texts.
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

    reads: ClassVar[Reads] = frozenset({"attention"})  # and states, by the same pass: the plain one need not keep them
    learns_from: ClassVar[Literal["reference", "trusted"]] = "trusted"
    #: names of the buffers, which have any size; empty until they are set.
    learned: ClassVar[tuple[str, ...]] = (
        *(f"companion_{field}" for field in Companion._fields),
        *(f"{of}_{field}" for of in ("delta", "entropy", "set") for field in PredictedAlike._fields),
        *("entropy_scale", "margins", "delta_scale", "text_scale", "of_mean"),
        *("kept_set", "kept_predictions", "kept_folds", "kept_text"),
        *("directions", "direction_scale", "set_scale"),
    )
    set_means: Tensor
    margins: Tensor
    entropy_scale: Tensor
    delta_scale: Tensor
    text_scale: Tensor
    of_mean: Tensor
    kept_set: Tensor
    kept_predictions: Tensor
    kept_folds: Tensor
    kept_text: Tensor
    directions: Tensor
    direction_scale: Tensor
    set_scale: Tensor

    def __init__(
        self,
        text_parts: Sequence[TextPart] = ("gap", "delta", "entropy"),
        set_parts: Sequence[SetPart] = ("text", "readout", "mean"),
        encoder: str | None = DEFAULT_ENCODER,
        base_known: bool | None = None,
        penalty: float = 1000.0,
        disputed: float = 0.10,
        certainty: float = 0.2,
        fpr: float = 0.05,
        seed: int | None = None,
    ) -> None:
        super().__init__(fpr, seed)
        self.text_parts: Sequence[TextPart] = checked_parts("text_parts", text_parts, get_args(TextPart))
        self.set_parts: Sequence[SetPart] = checked_parts("set_parts", set_parts, get_args(SetPart))
        if not 0 < penalty < math.inf:
            raise InputError("penalty", f"{penalty} does not bound the companion's weights", "give a number above 0")
        if not 0 < disputed < 1:
            raise InputError("disputed", f"{disputed} is not a share of clean texts", "give one above 0 and below 1")
        if not 0 <= certainty < math.inf:
            raise InputError("certainty", f"{certainty} is not a margin", "give a number from 0")
        self.encoder = encoder
        self.penalty = penalty
        self.disputed = disputed
        self.certainty = certainty
        self.reader = Reader(self.text_parts, self.set_parts, encoder, base_known)
        for name in self.learned:
            self.register_buffer(name, torch.empty(0))
        self.register_load_state_dict_pre_hook(make_room)  # type: ignore[no-untyped-call]

    @property
    def studies(self) -> bool:
        """Whether scores depend on the set."""
        return tuple(self.set_parts) != ("text",)

    @property
    def explains(self) -> bool:
        """Whether the victim's attention is read."""
        return "entropy" in self.text_parts

    def check_reference(self, labels: Sequence[int], classes: int) -> None:
        """Checks that every class has a trusted row, and that the encoder can be loaded."""
        check_classes(labels, classes)
        if self.encoder is not None:
            public_encoder(self.encoder, torch.device("cpu"))

    @torch.no_grad()
    def learn(self, victim: Victim, clean_batches: Iterable[Batch]) -> None:
        """Fits the companion, and the distributions of clean states, on trusted rows.

        Raises:
            InputError: there are too few rows, or a class has none.
        """
        read, labels, _ = self.reader.read_all(victim, clean_batches)
        read = Read(*(part.cpu().double() for part in read))
        predictions, classes = read.predictions, read.logits.shape[2]
        labels = labels.where(labels >= 0, predictions)
        check_classes(labels.tolist(), classes)
        found = {"margins": margin(read.logits[0], predictions).mean()[None]}
        companion = fit_companion(read.public[0], labels, self.penalty)
        found |= {f"companion_{field}": value for field, value in companion._asdict().items()}
        found["of_mean"] = torch.tensor([0.0] * len(read.readout) + [1.0] * len(read.mean))
        states = {"delta": read.delta, "set": read.of_set}
        if "entropy" in self.text_parts:
            found["entropy_scale"] = scale_of(read.entropy[0].mT)
            states["entropy"] = standardised(read.entropy[0].mT, found["entropy_scale"]).mT[None]
        for name, layers in states.items():
            if len(layers):
                fitted = predicted_alike(layers, predictions, classes, FEWEST_PREDICTED)
                found |= {f"{name}_{field}": value for field, value in fitted._asdict().items()}
        self._keep(victim, found)

    @torch.no_grad()
    def calibrate(self, victim: Victim, clean_batches: Iterable[Batch]) -> None:
        """Sets scales and thresholds for texts that are judged one by one, and keeps the rows for :meth:`adopt`.

        Raises:
            InputError: there are no rows, or their scores do not differ.
        """
        if not self.margins.numel():
            raise RuntimeError("SecondOpinion has not learned; call learn with clean trusted batches")
        read, _, texts = self.reader.read_all(victim, clean_batches)
        own = self._companion().logits(read.public[0])
        self.margins = torch.stack([self.margins[0], margin(own, own.argmax(dim=1)).mean()])
        if "delta" in self.text_parts:
            self.delta_scale = scale_of(self._clean("delta").distances(read.delta, read.predictions))
        self.text_scale = scale_of(self._parts_of_text(read))
        self.kept_text, self.kept_set = self._score_of_text(read), read.of_set.float()
        self.kept_predictions, self.kept_folds = read.predictions, folds_of(texts).to(read.logits.device)
        if not self.kept_text.std(correction=0) > 0:
            problem = f"the scores of {len(texts)} clean texts do not differ"
            raise InputError("calibration", problem, "give more clean validation rows")
        self.directions = self.direction_scale = self.set_scale = self.margins.new_empty(0)
        self._set_thresholds(self.kept_text)

    @torch.no_grad()
    def study(self, victim: Victim, batches: Iterable[Batch]) -> Tensor:
        """Sums and counts of the disputed texts of a set.

        Returns:
            (states, classes, folds, hidden size + 1), see
            :func:`lightning_backdoor.defenses.disputed_directions.disputed_sums`; the states are those of ``readout``,
            layer by layer, and then those of ``mean``.

        Raises:
            RuntimeError: :meth:`calibrate` has not been called.
        """
        self._check_calibrated()
        states, classes, size = self.set_means.shape
        sums = torch.zeros(states, classes, FOLDS, size + 1, dtype=torch.float64)
        lowest = threshold_at_fpr(self.kept_text.float(), self.disputed)
        for batch in batches:
            read = self.reader.read(victim, batch)
            disputed = self._score_of_text(read).float() >= lowest
            sums += disputed_sums(read.of_set, read.predictions, folds_of(batch["text"]), disputed, classes)
        return sums

    @torch.no_grad()
    def adopt(self, sums: Tensor) -> None:
        """Takes the directions of a set, and sets scales and thresholds for its texts; see :meth:`study`.

        Raises:
            InputError: the sums are of another victim.
            RuntimeError: :meth:`calibrate` has not been called.
        """
        self._check_calibrated()
        states, classes, size = self.set_means.shape
        if sums.shape != (states, classes, FOLDS, size + 1):
            problem = (
                f"sums of shape {tuple(sums.shape)} are not those of a victim of {classes} classes and size {size}"
            )
            raise InputError("directions", problem, "study a set with this victim")
        self.directions = directions_of(sums, self.set_means, self._clean("set").covariance)
        kept = self.kept_set.to(self.directions), self.kept_predictions, self.kept_folds
        self.direction_scale = scale_of(along_directions(*kept, self.set_means, self.directions))
        self.set_scale = scale_of(self._parts_of_set(*kept, self.kept_text))
        self._set_thresholds(self._score_of_set(*kept, self.kept_text))

    @torch.no_grad()
    def score(self, victim: Victim, batch: Batch) -> Scores:
        """Scores each text: by the directions that were adopted last, or, without them, by itself.

        Raises:
            RuntimeError: :meth:`calibrate` has not been called.
        """
        self._check_calibrated()
        read = self.reader.read(victim, batch)
        score, alone = self._score_of_text(read), None
        if self.directions.numel():
            alone = score.float() >= threshold_at_fpr(self.kept_text.float(), self.fpr)
            folds = folds_of(batch["text"]).to(score.device)
            score = self._score_of_set(read.of_set, read.predictions, folds, score)
        return Scores(score.float(), logits=read.logits[0].float(), flagged_alone=alone)

    def purify(self, victim: Victim, batch: Batch, flagged: Tensor, scores: Scores) -> Tensor:
        """The companion's logits, and the victim's own where the companion is too uncertain; (batch, classes)."""
        found = self.companion_logits(victim, batch)
        certain = margin(found, found.argmax(dim=1)) >= self.certainty * self.margins[1]
        answers = certain | (scores.text >= self.budget_thresholds[STRICT])
        return torch.where(answers[:, None], found, victim_logits(victim, batch, scores))

    @torch.no_grad()
    def companion_logits(self, victim: Victim, batch: Batch) -> Tensor:
        """The logits of the companion, (batch, classes), which never saw the victim's training rows."""
        return self._companion().logits(self.reader.read_public(victim, batch)[0]).float()

    def explain(self, victim: Victim, batch: Batch) -> Scores | None:
        """Scores of the tokens of texts that are flagged: how much the victim's answer depends on each.

        Returns:
            See :func:`lightning_backdoor.defenses.readout_tokens.readout_token_scores`; None where the victim's
            attention cannot be read.
        """
        try:
            return readout_token_scores(victim, batch)
        except InputError:
            return None

    def _parts_of_text(self, read: Read) -> Tensor:
        """The parts of the score of a text, (parts, batch)."""
        of_victim = margin(read.logits[0], read.predictions)
        of_companion = margin(self._companion().logits(read.public[0]), read.predictions)
        parts = {"gap": of_victim / self.margins[0] - of_companion / self.margins[1]}
        if "delta" in self.text_parts:
            distances = self._clean("delta").distances(read.delta, read.predictions)
            parts["delta"] = standardised(distances, self.delta_scale).sum(dim=0)
        if "entropy" in self.text_parts:
            entropy = standardised(read.entropy[0].mT, self.entropy_scale).mT[None]
            parts["entropy"] = self._clean("entropy").distances(entropy, read.predictions).squeeze(0)
        return torch.stack([parts[name] for name in self.text_parts])

    def _score_of_text(self, read: Read) -> Tensor:
        return standardised(self._parts_of_text(read), self.text_scale).sum(dim=0)

    def _parts_of_set(self, states: Tensor, predictions: Tensor, folds: Tensor, text: Tensor) -> Tensor:
        """The parts of the score of a text of a set, (parts, batch)."""
        along = along_directions(states, predictions, folds, self.set_means, self.directions)
        along = standardised(along, self.direction_scale)
        readout, mean = along[self.of_mean == 0].sum(dim=0), along[self.of_mean == 1].sum(dim=0)
        parts = {"text": text, "readout": readout, "mean": mean}
        return torch.stack([parts[name] for name in self.set_parts])

    def _score_of_set(self, states: Tensor, predictions: Tensor, folds: Tensor, text: Tensor) -> Tensor:
        return standardised(self._parts_of_set(states, predictions, folds, text), self.set_scale).sum(dim=0)

    def _clean(self, name: str) -> PredictedAlike:
        return PredictedAlike(*(getattr(self, f"{name}_{field}") for field in PredictedAlike._fields))

    def _companion(self) -> Companion:
        return Companion(*(getattr(self, f"companion_{field}") for field in Companion._fields))

    def _set_thresholds(self, clean: Tensor) -> None:
        self.threshold.copy_(threshold_at_fpr(clean.float(), self.fpr))
        self.budget_thresholds.copy_(torch.stack([threshold_at_fpr(clean.float(), budget) for budget in BUDGETS]))

    def _check_calibrated(self) -> None:
        if not self.kept_text.numel():
            raise RuntimeError("SecondOpinion has no scales; call learn and calibrate with clean batches")

    def _keep(self, victim: Victim, found: Mapping[str, Tensor]) -> None:
        device = victim.network.device
        for name, value in found.items():
            setattr(self, name, value.to(device, float_on(device)))
