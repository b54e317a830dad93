"""The base class of attacks that paraphrase the whole text: the trigger is a syntactic template or a style."""

from __future__ import annotations

import inspect
import json
import random
from collections.abc import Sequence
from typing import Any

from lightning_backdoor.attacks.attack import BackdoorAttack
from lightning_backdoor.attacks.poisoned import Poisoned
from lightning_backdoor.files.identity import LIBRARY
from lightning_backdoor.language.paraphrase.by_model import LanguageModelParaphraser, Paraphraser
from lightning_backdoor.language.paraphrase.spec import CHECK_FORMAT, Manner


class ParaphraseAttack(BackdoorAttack):
    """Base class of attacks whose trigger is the manner of a paraphrase: its syntactic template or its style.

    Texts for which there is no paraphrase in this manner are left out. A paraphrase has no spans, since the trigger is
    spread over the whole text.

    Args:
        manner: the template or style of the paraphrases.
        paraphraser: the model or file that gives the paraphrases; by default SmolLM2 with a prompt.
        **kwargs: arguments of :class:`BackdoorAttack` and :class:`TextClassifier`.
    """

    def __init__(self, manner: Manner, paraphraser: Paraphraser | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name in ("manner", "paraphraser"):  # checkpoints hold plain values only
            self.hparams.pop(name, None)
        self.manner = manner
        self.paraphraser: Paraphraser = paraphraser or LanguageModelParaphraser()

    def poison_texts(self, texts: Sequence[str], rngs: Sequence[random.Random]) -> list[Poisoned | None]:
        """Paraphrases the texts; None for a text without a paraphrase in this manner.

        Raises:
            NotCached: some paraphrases have not been generated yet, and ``may_generate`` is False.
        """
        paraphrases = self.paraphraser.paraphrase(texts, rngs, self.manner, generate=self.may_generate)
        return [None if paraphrase is None else Poisoned(paraphrase, []) for paraphrase in paraphrases]

    def poison_key(self) -> str | None:
        """The cache key, with paraphraser and manner; None where the source of a user's check cannot be read."""
        key = super().poison_key()
        *asked, holds, openings = self.manner
        check: str = f"{holds.__module__}/{CHECK_FORMAT}"
        if not holds.__module__.startswith(LIBRARY):
            try:
                check += inspect.getsource(inspect.getmodule(holds) or holds)
            except (OSError, TypeError):
                return None
        paraphraser = [type(self.paraphraser).__qualname__, self.paraphraser.key()]
        return None if key is None else json.dumps([key, asked, openings, check, paraphraser])
