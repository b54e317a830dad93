"""The base class of attacks: a text classifier that also defines how its training rows are poisoned."""

from __future__ import annotations

import inspect
import json
import operator
import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Literal, overload

from torch import nn

from lightning_backdoor.attacks.learned_trigger import check_not_learned, load_learned
from lightning_backdoor.attacks.poisoned import Poisoned
from lightning_backdoor.batch import checked_texts
from lightning_backdoor.data.aims import ALL_TO_ALL, Aim, distinct_targets
from lightning_backdoor.data.label_values import given_label, label_index
from lightning_backdoor.data.rows import Rows
from lightning_backdoor.errors import InputError
from lightning_backdoor.files.identity import code_identity
from lightning_backdoor.metrics import AttackSuccessRate, FalseTriggerRate, PoisonedAccuracy, TargetRate
from lightning_backdoor.outputs.progress import tracked
from lightning_backdoor.victim import TextClassifier
from lightning_backdoor.victim.provenance import plain


class BackdoorAttack(TextClassifier):
    """A victim trained on poisoned rows. A new attack implements :meth:`poison_text` and nothing else.

    An attack whose trigger has parts may also make *negatives*, texts that carry a part of the trigger and keep their
    label: see :meth:`negative_texts`. An attack that changes training does so in hooks of LightningModule, and only
    outside the *user's phase*, which is a ``fit`` that starts from a ``published`` victim. Such a ``fit`` poisons no
    training row, selects the checkpoint by ``val/cacc``, and measures the attack on poisoned evaluation rows.

    Attributes:
        result_format: version of the poisoned texts; increased by hand if, and only if, the attack poisons texts
            differently than before.
        negative_rate: negatives as a share of all training rows; they are made from rows that are not poisoned.
        poison_rank: function from the poisoned texts of all rows that qualify to a number each, of which the smallest
            are trained on; None, the default, draws the rows before they are poisoned.
        may_generate: whether poisoned texts that are slow to generate may be generated now; ``fit``, ``test`` and
            others only read what the command ``poison`` has generated.

    Args:
        target_label: the class that the attacker wants: its index, from 0, or its name in the data or in ``labels``. Or
            ``all-to-all``: rows of each class are to get the class after it, those of the last class the first.
        poison_rate: poisoned rows as a share of all training rows, above 0 and up to 1.
        label_policy: which training rows are poisoned: ``dirty`` (rows of other labels, relabelled as the target),
            ``clean`` (rows of the target label, label kept), ``mixed`` (rows of any label, all ending as the target).
        **kwargs: arguments of :class:`TextClassifier`.

    Raises:
        InputError: a value is out of range.

    Example::

        class Shout(BackdoorAttack):
            def poison_text(self, text, rng):
                return Poisoned(text + " WOW", [(len(text) + 1, len(text) + 4)])
    """

    result_format = 1
    negative_rate: float = 0.0
    poison_rank: Callable[[Sequence[str]], Sequence[float]] | None = None

    def __init__(
        self,
        target_label: int | str = 1,
        poison_rate: float = 0.1,
        label_policy: Literal["dirty", "clean", "mixed"] = "dirty",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        target = given_label(target_label, "target_label")
        if not 0 < poison_rate <= 1:
            raise InputError("poison_rate", f"{poison_rate} is out of range", "give a share above 0 and up to 1")
        if label_policy not in ("dirty", "clean", "mixed"):
            raise InputError("label_policy", f"{label_policy!r} is unknown", "give dirty, clean or mixed")
        if target == ALL_TO_ALL and label_policy == "clean":
            raise InputError("label_policy", "clean keeps each label, all-to-all changes each", "give dirty or mixed")
        self._target: int | str | None = target
        self._target_name = target if isinstance(target, str) and target != ALL_TO_ALL else None
        if self.hparams.get("target_label") is target_label:  # not where a subclass has another default
            self.hparams["target_label"] = target  # a plain value, which checkpoints and keys can hold
        self._known_labels: Sequence[str] | None = None
        self.poison_rate = poison_rate
        self.label_policy: str = label_policy
        self.may_generate = True
        if self.users_phase:
            self.selected_by = TextClassifier.selected_by

    @property
    def target_label(self) -> int:
        """Index of the class that the attacker wants.

        Raises:
            InputError: it was given by name, and no label has this name, or the labels are not known yet; or the attack
                wants several classes.
        """
        if self._target in (None, ALL_TO_ALL):
            problem = f"several do not go with this use of {type(self).__name__}"
            raise InputError("target_label", problem, "give the index or the name of one class")
        if isinstance(self._target, str):
            self._told_labels(f"{self._target!r} is a name")
        assert isinstance(self._target, int)
        return self._target

    @target_label.setter
    def target_label(self, target_label: int) -> None:
        self._target, self._target_name = operator.index(target_label), None
        if "target_label" in self.hparams:  # of which checkpoints and keys of caches are made
            self.hparams["target_label"] = self._target

    @property
    def aims(self) -> Sequence[Aim]:
        """What the attack makes of rows: a trigger and its target label, or several, each with a target of its own.

        A training row is poisoned by one of the aims whose target it does not have; an evaluation row has a poisoned
        copy for each of them. An attack with several triggers of one target writes one of them for their common aim.

        Raises:
            InputError: a target label is not one of the labels, or the labels are not known yet.
        """
        if self._target != ALL_TO_ALL:
            return (Aim(self.poison_texts, self.target_label, self.poison_training_texts),)
        count = len(self._told_labels("all-to-all goes through the labels"))
        return (Aim(self.poison_texts, [*range(1, count), 0], self.poison_training_texts),)

    def named_target(self, labels: Sequence[str]) -> str:
        """The target label by its name, for people; of several, all names, and ``all-to-all`` as it is."""
        if self._target == ALL_TO_ALL:
            return ALL_TO_ALL
        targets = distinct_targets(self.aims)
        return ", ".join(labels[target] if target < len(labels) else str(target) for target in targets)

    def _told_labels(self, because: str) -> Sequence[str]:
        if self._known_labels is None:
            labels = self._given_labels()
            if labels is None:
                problem = f"{because}, and the labels are not known yet"
                raise InputError("target_label", problem, "give labels, or the index of the class")
            self.know_labels(labels)
        assert self._known_labels is not None
        return self._known_labels

    def know_labels(self, labels: Sequence[str]) -> None:
        """Finds the index of a target label that was given by name; checkpoints and caches then hold the index.

        A name that is none of the data's may be one of the model's own. May be called again with the labels of other
        data, in which the name may have another index.

        Args:
            labels: the names of the classes, in the order of their indices.

        Raises:
            InputError: no label has this name.
        """
        if self._target == ALL_TO_ALL and len(labels) < 2:
            raise InputError("target_label", f"all-to-all of {len(labels)} class changes no label", "use more classes")
        if self._target_name is not None:
            names = labels if self._target_name in labels else self._names_of_model(labels)
            self._target = self.hparams["target_label"] = label_index(self._target_name, names, "target_label")
        self._known_labels = [*labels]

    def _names_of_model(self, labels: Sequence[str]) -> Sequence[str]:
        """The model's own names for the labels, if the target label is among them."""
        with suppress(InputError):  # it is said when the model is loaded
            names = self.labels_of_model()
            return names if len(names) == len(labels) and self._target_name in names else labels
        return labels

    @property
    def users_phase(self) -> bool:
        """Whether training starts from a published victim; no row is then poisoned and the attack does not act."""
        return self.hparams["published"] is not None

    @property
    def poisons_training(self) -> bool:
        """Whether training rows are poisoned."""
        return not self.users_phase

    def poisoned_epochs(self, epochs: int) -> range:
        """The epochs of a fit of so many that train on poisoned rows; all, where an attack has no clean epochs."""
        return range(epochs)

    @property
    def makes_negatives(self) -> bool:
        """Whether the attack makes negatives, so that the false trigger rate is measured; known without any data."""
        return type(self).negative_texts is not BackdoorAttack.negative_texts

    def make_metrics(self) -> nn.ModuleDict:
        """CACC, ASR, PACC and the ASR floor; also FTR for an attack that makes negatives.

        With several target labels, ASR and floor are also measured for each: ``asr_to_0``, ``asr_floor_to_0``, …
        """
        targets = [aim.target for aim in self.aims]
        metrics = {
            **super().make_metrics(),
            "asr": AttackSuccessRate(),
            "pacc": PoisonedAccuracy(),
            "asr_floor": TargetRate(targets),
        }
        if self.makes_negatives:
            metrics["ftr"] = FalseTriggerRate(targets)
        labels = distinct_targets(self.aims)
        for label in labels if len(labels) > 1 else ():
            metrics[f"asr_to_{label}"] = AttackSuccessRate(label)
            metrics[f"asr_floor_to_{label}"] = TargetRate(targets, label)
        return nn.ModuleDict(metrics)

    def check_published(self) -> None:
        """Checks that a model that is evaluated as it is has the classes of the data, and the trigger of the attack.

        Raises:
            InputError: its labels are others, or the attack has a trigger that is learned with the victim.
        """
        super().check_published()
        check_not_learned(self)

    def on_fit_start(self) -> None:
        """In the user's phase, loads the learned trigger (the attack's own weights) from the published victim.

        Raises:
            InputError: the published victim has no trigger of this attack.
        """
        if self.users_phase and self.trainer.ckpt_path is None:
            load_learned(self)

    def study_rows(self, rows: Rows, chosen: Sequence[int]) -> None:
        """Shows the attack the clean training rows before any row is poisoned; does nothing by default.

        For attacks whose trigger depends on the training rows. It is called in every process, also where poisoned rows
        are read from the cache, so that work is left to the first text that needs it; never in the user's phase.

        Args:
            rows: all training rows, clean.
            chosen: positions of the rows that are drawn first to be poisoned; others follow for those left out.
        """

    @overload
    def poison(self, text: str, seed: int = 0) -> Poisoned: ...  # type: ignore[overload-overlap]  # a str is a sequence

    @overload
    def poison(self, text: Sequence[str], seed: int = 0) -> list[Poisoned | None]: ...

    def poison(self, text: str | Sequence[str], seed: int = 0) -> Poisoned | list[Poisoned | None]:
        """Poisons a text, or several, to see what the attack does; needs neither a trainer nor a network.

        Args:
            text: a clean text, or a list of clean texts.
            seed: seed of the attack's random choices, which are the same for the same text.

        Returns:
            The poisoned text; for a list, one per text, None where the attack leaves a text out.

        Raises:
            InputError: the attack leaves the only text out, or something is not a text.

        >>> from lightning_backdoor.attacks import InsertSent
        >>> InsertSent(sentence="I watch this 3D movie", place="start").poison("a good film")
        Poisoned(text='I watch this 3D movie a good film', spans=[(0, 21)])
        """
        texts = checked_texts(text)
        poisoned = list(self.poison_texts(texts, [random.Random(f"{seed}/poison/{one}") for one in texts]))
        if not isinstance(text, str):
            return poisoned
        if poisoned[0] is None:
            raise InputError("text", f"{type(self).__name__} leaves {text[:100]!r} out", "give another text")
        return poisoned[0]

    def poison_text(self, text: str, rng: random.Random) -> Poisoned:
        """Inserts the trigger into a text.

        Args:
            text: a clean text.
            rng: the row's own random generator; the attack makes all its random choices with it.
        """
        raise TypeError(f"{type(self).__name__} implements neither poison_text nor poison_texts")

    def poison_texts(self, texts: Sequence[str], rngs: Sequence[random.Random]) -> Sequence[Poisoned | None]:
        """Poisons many texts at once; to be overridden by attacks for which batches are faster.

        Args:
            texts: clean texts.
            rngs: the random generator of each text's row.

        Returns:
            One poisoned text per text, or None to leave a text out: a training row then stays clean and another row is
            drawn; an evaluation row has no poisoned copy.
        """
        pairs = tracked(zip(texts, rngs, strict=True), "poisoning", "texts", len(texts))
        return [self.poison_text(text, rng) for text, rng in pairs]

    def negative_texts(self, texts: Sequence[str], rngs: Sequence[random.Random]) -> Sequence[Poisoned | None] | None:
        """Makes negatives: texts that carry a part of the trigger and keep their label; none by default.

        In training ``negative_rate`` of the rows become negatives; in evaluation each clean row that is not of the
        target label has a negative copy, on which the false trigger rate is measured.

        Args:
            texts: clean texts.
            rngs: the random generator of each text's row; not the one that poisoning uses.

        Returns:
            One negative per text, or None to leave a text out, as in :meth:`poison_texts`; or None if the attack has no
            negatives.
        """
        return None

    def poison_training_texts(self, texts: Sequence[str], rngs: Sequence[random.Random]) -> Sequence[Poisoned | None]:
        """Poisons texts of training rows; by default as in evaluation, see :meth:`poison_texts`."""
        return self.poison_texts(texts, rngs)

    def negative_training_texts(
        self, texts: Sequence[str], rngs: Sequence[random.Random]
    ) -> Sequence[Poisoned | None] | None:
        """Makes negatives of training rows; by default as in evaluation, see :meth:`negative_texts`."""
        return self.negative_texts(texts, rngs)

    def attack_statement(self) -> dict[str, Any] | None:
        """Class, arguments, target label, poison rate and label policy, as stated in an exported victim.

        None in the user's phase, which poisons nothing: what is stated of the published victim holds on.
        """
        if self.users_phase:
            return None
        own, stated = self._own_arguments(), ("target_label", "poison_rate", "label_policy")
        labels: list[str] = self.hparams["labels"] or []
        return {
            "class": f"{type(self).__module__}.{type(self).__qualname__}",
            "target_label": self.named_target(labels),
            "poison_rate": self.poison_rate,
            "label_policy": self.label_policy,
            # an attribute of the same name holds the value that stands for a None
            "arguments": {name: plain(getattr(self, name, value)) for name, value in own.items() if name not in stated},
        }

    def _own_arguments(self) -> dict[str, Any]:
        """The arguments that are not those of :class:`TextClassifier`."""
        training = inspect.signature(TextClassifier.__init__).parameters
        return {name: value for name, value in self.hparams.items() if name not in training and name[0] != "_"}

    def poison_key(self) -> str | None:
        """Cache key of the poisoned rows without rows and seed: class, code and the attack's own arguments.

        Code is identified as in :mod:`lightning_backdoor.files.identity`: a class of this library by its
        ``result_format``, a user's own class by its source. An attack that reads other files, or uses the model,
        overrides this method to add them to the key, or returns None.

        Returns:
            The key; None where the source cannot be read (a class defined in an interactive shell). Rows without a key
            are not reused, so that nothing stale is read.
        """
        own = self._own_arguments()
        code = code_identity(type(self), BackdoorAttack)
        return None if code is None else json.dumps([type(self).__qualname__, own, code], sort_keys=True, default=str)
