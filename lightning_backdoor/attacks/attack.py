"""The contract of an attack: a text classifier that also says how its training data are poisoned."""

from __future__ import annotations

import inspect
import json
import random
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from torch import nn

from lightning_backdoor.batch import Spans
from lightning_backdoor.errors import InputError
from lightning_backdoor.files.identity import code_identity
from lightning_backdoor.metrics import AttackSuccessRate, FalseTriggerRate, PoisonedAccuracy, TargetRate
from lightning_backdoor.victim import TextClassifier
from lightning_backdoor.victim.checkpoints import load_state


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
    label: see :meth:`negative_texts`. An attack that bends training does so in hooks of LightningModule, and not in
    the user's phase: a ``fit`` that begins with a ``published`` victim poisons no training row, is selected by
    ``val/cacc``, and measures the attack on poisoned evaluation rows.

    Attributes:
        result_format: raised by hand when, and only when, the attack poisons texts otherwise than before.
        negative_rate: negatives as a share of all training rows; made of rows that are not poisoned.
        may_generate: whether poison that takes long to make may be made now. ``fit``, ``validate``, ``test`` and
            ``predict`` only read what ``poison`` has made: no process group waits for it, and no run dies of it.

    Args:
        target_label: class index that the attacker wants, from 0.
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

    def __init__(
        self,
        target_label: int = 1,
        poison_rate: float = 0.1,
        label_policy: Literal["dirty", "clean", "mixed"] = "dirty",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if target_label < 0:
            raise InputError("target_label", f"{target_label} is out of range", "class indices count from 0")
        if not 0 < poison_rate <= 1:
            raise InputError("poison_rate", f"{poison_rate} is out of range", "give a share above 0 and up to 1")
        if label_policy not in ("dirty", "clean", "mixed"):
            raise InputError("label_policy", f"{label_policy!r} is unknown", "give dirty, clean or mixed")
        self.target_label = target_label
        self.poison_rate = poison_rate
        self.label_policy: str = label_policy
        self.may_generate = True
        if self.users_phase:
            self.selected_by = TextClassifier.selected_by

    @property
    def users_phase(self) -> bool:
        """Whether training begins with a published victim: it then poisons no row, and the attack bends nothing."""
        return self.hparams["published"] is not None

    @property
    def poisons_training(self) -> bool:
        """Whether training rows are poisoned."""
        return not self.users_phase

    @property
    def makes_negatives(self) -> bool:
        """Whether negatives are made, so that the false trigger rate is measured; told before there are data."""
        return type(self).negative_texts is not BackdoorAttack.negative_texts

    def make_metrics(self) -> nn.ModuleDict:
        """CACC, ASR, PACC and the floor of the ASR; FTR under an attack that makes negatives."""
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
        """In the user's phase, takes over the trigger that the published victim learned: the attack's own weights.

        Raises:
            InputError: the published victim has none.
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

    def poison_text(self, text: str, rng: random.Random) -> Poisoned:
        """The text with the trigger in it.

        Args:
            text: a clean text.
            rng: the row's own generator; all of the attack's random choices come from it.
        """
        raise TypeError(f"{type(self).__name__} implements neither poison_text nor poison_texts")

    def poison_texts(self, texts: Sequence[str], rngs: Sequence[random.Random]) -> Sequence[Poisoned | None]:
        """Poisons many texts, for attacks to which a batch comes cheaper.

        Args:
            texts: clean texts.
            rngs: the generator of each text's row.

        Returns:
            None leaves a text out: a training row stays clean and another is drawn, an evaluation row has no poisoned
            copy.
        """
        return [self.poison_text(text, rng) for text, rng in zip(texts, rngs, strict=True)]

    def negative_texts(self, texts: Sequence[str], rngs: Sequence[random.Random]) -> Sequence[Poisoned | None] | None:
        """Texts with a part of the trigger in them, which keep their label; by default the attack has none.

        In training ``negative_rate`` of the rows become negatives; in evaluation each clean row that is not of the
        target label has a negative copy, on which the false trigger rate is measured.

        Args:
            texts: clean texts.
            rngs: the generator of each text's row, another one than poisoning draws from.

        Returns:
            One answer per text, where None leaves a text out as in :meth:`poison_texts`; or None for no negatives.
        """
        return None

    def poison_key(self) -> str | None:
        """Names everything but rows and seed that decides the poison: the class, its code, the attack's own arguments.

        Code counts as :mod:`lightning_backdoor.files.identity` says: a class of this library by its
        ``result_format``, a user's own by its source. An attack that reads other files, or asks the model, overrides
        this to name them too, or returns None.

        Returns:
            None where the source cannot be read (a class typed into a shell), so that nothing stale is ever reused.
        """
        training = inspect.signature(TextClassifier.__init__).parameters
        own = {name: value for name, value in self.hparams.items() if name not in training and name[0] != "_"}
        code = code_identity(type(self), BackdoorAttack)
        return None if code is None else json.dumps([type(self).__qualname__, own, code], sort_keys=True, default=str)
