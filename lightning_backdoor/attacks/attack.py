"""The base class of attacks: a text classifier that also defines how its training rows are poisoned."""

from __future__ import annotations

import inspect
import json
import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, overload

from torch import nn

from lightning_backdoor.batch import Spans, checked_texts
from lightning_backdoor.errors import InputError, did_you_mean
from lightning_backdoor.files.identity import code_identity
from lightning_backdoor.metrics import AttackSuccessRate, FalseTriggerRate, PoisonedAccuracy, TargetRate
from lightning_backdoor.outputs.progress import tracked
from lightning_backdoor.victim import TextClassifier
from lightning_backdoor.victim.checkpoints import load_state
from lightning_backdoor.victim.provenance import plain

if TYPE_CHECKING:
    from lightning_backdoor.data.rows import Rows


class Poisoned(NamedTuple):
    """A poisoned text.

    Attributes:
        text: the text with the trigger.
        spans: the characters ``[start, end)`` of the trigger in it; empty for triggers without a position, such as a
            style.
    """

    text: str
    spans: Spans


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
        poison_rank: function from poisoned training texts to a number each. All rows that qualify are then poisoned,
            and those with the smallest numbers are trained on; None, the default, draws rows at random before they are
            poisoned.
        may_generate: whether poisoned texts that are slow to generate may be generated now. ``fit``, ``validate``,
            ``test`` and ``predict`` only read what the command ``poison`` has generated, so that no process group waits
            for it and no run fails because of it.

    Args:
        target_label: the class that the attacker wants: its index, from 0, or its name in the data or in ``labels``.
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
        if isinstance(target_label, int) and target_label < 0:
            raise InputError("target_label", f"{target_label} is out of range", "class indices count from 0")
        if not 0 < poison_rate <= 1:
            raise InputError("poison_rate", f"{poison_rate} is out of range", "give a share above 0 and up to 1")
        if label_policy not in ("dirty", "clean", "mixed"):
            raise InputError("label_policy", f"{label_policy!r} is unknown", "give dirty, clean or mixed")
        self._target: int | str = target_label
        self._target_name = target_label if isinstance(target_label, str) else None
        self.poison_rate = poison_rate
        self.label_policy: str = label_policy
        self.may_generate = True
        if self.users_phase:
            self.selected_by = TextClassifier.selected_by

    @property
    def target_label(self) -> int:
        """Index of the class that the attacker wants.

        Raises:
            InputError: it was given by name, and no label has this name, or the labels are not known yet.
        """
        if isinstance(self._target, str):
            labels = self._given_labels()
            if labels is None:
                problem = f"{self._target!r} is a name, and the labels are not known yet"
                raise InputError("target_label", problem, "give labels, or the index of the class")
            self.know_labels(labels)
        assert isinstance(self._target, int)
        return self._target

    @target_label.setter
    def target_label(self, target_label: int) -> None:
        self._target, self._target_name = target_label, None

    def know_labels(self, labels: Sequence[str]) -> None:
        """Finds the index of a target label that was given by name; checkpoints and caches then hold the index.

        May be called again with the labels of other data, in which the name may have another index.

        Args:
            labels: the names of the classes, in the order of their indices.

        Raises:
            InputError: no label has this name.
        """
        name = self._target_name
        if name is not None:
            if name not in labels:
                remedy = f"{did_you_mean(name, labels)} the labels are {', '.join(labels)}".strip()
                raise InputError("target_label", f"{name!r} is not a label", remedy)
            self._target = list(labels).index(name)
            self.hparams["target_label"] = self._target

    @property
    def users_phase(self) -> bool:
        """Whether training starts from a published victim; no row is then poisoned and the attack does not act."""
        return self.hparams["published"] is not None

    @property
    def poisons_training(self) -> bool:
        """Whether training rows are poisoned."""
        return not self.users_phase

    @property
    def makes_negatives(self) -> bool:
        """Whether the attack makes negatives, so that the false trigger rate is measured; known without any data."""
        return type(self).negative_texts is not BackdoorAttack.negative_texts

    def make_metrics(self) -> nn.ModuleDict:
        """CACC, ASR, PACC and the ASR floor; also FTR for an attack that makes negatives."""
        metrics = {
            **super().make_metrics(),
            "asr": AttackSuccessRate(),
            "pacc": PoisonedAccuracy(),
            "asr_floor": TargetRate(self.target_label),
        }
        if self.makes_negatives:
            metrics["ftr"] = FalseTriggerRate(self.target_label)
        return nn.ModuleDict(metrics)

    def on_fit_start(self) -> None:
        """In the user's phase, loads the learned trigger (the attack's own weights) from the published victim.

        Raises:
            InputError: the published victim has no trigger of this attack.
        """
        if not self.users_phase or self.trainer.ckpt_path is not None:
            return
        own = [name for name in self.state_dict() if not name.startswith("network.")]
        published = self.read_published()
        learned = (published.state if published else None) or {}
        missing = [name for name in own if name not in learned]
        if missing:
            problem = f"{self.hparams['published']} has no trigger of {type(self).__name__} ({', '.join(missing)})"
            raise InputError("published", problem, f"give a checkpoint trained under {type(self).__name__}")
        try:
            load_state(self, {name: learned[name] for name in own}, self.hparams["published"], strict=False)
        except InputError as error:
            raise error.under("published") from None

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

    def attack_statement(self) -> dict[str, Any] | None:
        """Class, arguments, target label, poison rate and label policy, as stated in an exported victim.

        None in the user's phase, which poisons nothing: what is stated of the published victim holds on.
        """
        if self.users_phase:
            return None
        own, stated = self._own_arguments(), ("target_label", "poison_rate", "label_policy")
        labels: list[str] = self.hparams["labels"] or []
        target = labels[self.target_label] if self.target_label < len(labels) else str(self.target_label)
        return {
            "class": f"{type(self).__module__}.{type(self).__qualname__}",
            "target_label": target,
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
