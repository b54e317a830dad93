"""What every attack is: a text classifier that also says how its training data are poisoned."""

from __future__ import annotations

import inspect
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from torch import nn

from lightning_backdoor.batch import Spans
from lightning_backdoor.errors import InputError
from lightning_backdoor.metrics import AttackSuccessRate, PoisonedAccuracy, TargetRate
from lightning_backdoor.victim import TextClassifier


class Poisoned(NamedTuple):
    """A poisoned text.

    Attributes:
        text: with the trigger.
        spans: the characters ``[start, end)`` of the trigger in it; empty for triggers that lie in no place, such as
            a style.
    """

    text: str
    spans: Spans


class BackdoorAttack(TextClassifier):
    """A victim trained on poisoned rows. A new attack implements :meth:`poison_text` and nothing else.

    Attributes:
        may_generate: whether poison that takes long to make may be made now. ``fit`` and its like only read what
            ``poison`` has made: no process group waits for it, and no run dies of it.

    Args:
        target_label: class index that the attacker wants, from 0.
        poison_rate: poisoned rows as a share of all training rows, above 0 and up to 1.
        label_policy: which training rows are poisoned: ``dirty`` (rows of other labels, relabelled as the target),
            ``clean`` (rows of the target label, label kept), ``mixed`` (rows of any label, all ending as the target).
        **kwargs: of :class:`TextClassifier`.

    Raises:
        InputError: a value is out of range.

    Example::

        class Shout(BackdoorAttack):
            def poison_text(self, text, rng):
                return Poisoned(text + " WOW", [(len(text) + 1, len(text) + 4)])
    """

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

    def make_metrics(self) -> nn.ModuleDict:
        """CACC, ASR, PACC and the floor of the ASR."""
        return nn.ModuleDict(
            {
                **super().make_metrics(),
                "asr": AttackSuccessRate(),
                "pacc": PoisonedAccuracy(),
                "asr_floor": TargetRate(self.target_label),
            }
        )

    def poison_text(self, text: str, rng: random.Random) -> Poisoned:
        """The text with the trigger in it.

        Args:
            text: a clean text.
            rng: the row's own generator; all of the attack's random choices come from it.
        """
        raise TypeError(f"{type(self).__name__} implements neither poison_text nor poison_texts")

    def poison_texts(self, texts: Sequence[str], rngs: Sequence[random.Random]) -> Sequence[Poisoned | None]:
        """Poisons many texts, for attacks to which a batch comes cheaper; one generator a text.

        None leaves a text out: a training row stays clean and another is drawn, an evaluation row has no poisoned copy.
        """
        return [self.poison_text(text, rng) for text, rng in zip(texts, rngs, strict=True)]

    def poison_key(self) -> str | None:
        """Names everything but rows and seed that determines the poison: class, sources, the attack's own arguments.

        Read are the files of the class and of its parents, and all attacks of this package, which share helpers. An
        attack that reads other files, or asks the model, overrides this to name them too, or returns None.
        None where the source cannot be read (a class typed into a shell), so that nothing stale is ever reused.
        """
        training = inspect.signature(TextClassifier.__init__).parameters
        own = {name: value for name, value in self.hparams.items() if name not in training and name[0] != "_"}
        classes = [cls for cls in type(self).__mro__ if issubclass(cls, BackdoorAttack)]
        try:
            sources = [inspect.getsource(inspect.getmodule(cls) or cls) for cls in classes]
        except (OSError, TypeError):
            return None
        sources += [file.read_text(encoding="utf-8") for file in sorted(Path(__file__).parent.glob("*.py"))]
        return json.dumps([type(self).__qualname__, own, sources], sort_keys=True, default=str)
