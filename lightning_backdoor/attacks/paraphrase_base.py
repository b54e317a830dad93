"""The base of attacks whose trigger is a manner of speaking: the whole text is paraphrased."""

from __future__ import annotations

import inspect
import json
import random
from collections.abc import Sequence
from typing import Any

from lightning_backdoor.attacks.attack import BackdoorAttack, Poisoned
from lightning_backdoor.files.identity import LIBRARY
from lightning_backdoor.language.paraphrase.by_model import LanguageModelParaphraser, Paraphraser
from lightning_backdoor.language.paraphrase.spec import CHECK_FORMAT, Manner


class ParaphraseAttack(BackdoorAttack):
    """Paraphrases texts in a manner that is the trigger; texts that cannot be paraphrased so are left out.

    A paraphrase has no spans: the trigger is everywhere in it.

    Args:
        manner: what the paraphrases should be like.
        paraphraser: what paraphrases the texts; by default SmolLM2, prompted.
        **kwargs: arguments of :class:`BackdoorAttack` and :class:`TextClassifier`.
    """

    def __init__(self, manner: Manner, paraphraser: Paraphraser | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name in ("manner", "paraphraser"):  # checkpoints hold no objects
            self.hparams.pop(name, None)
        self.manner = manner
        self.paraphraser: Paraphraser = paraphraser or LanguageModelParaphraser()

    def poison_texts(self, texts: Sequence[str], rngs: Sequence[random.Random]) -> list[Poisoned | None]:
        """The paraphrases.

        Raises:
            NotCached: some have not been generated yet and may not be now.
        """
        paraphrases = self.paraphraser.paraphrase(texts, rngs, self.manner, generate=self.may_generate)
        return [None if paraphrase is None else Poisoned(paraphrase, []) for paraphrase in paraphrases]

    def poison_key(self) -> str | None:
        """Names the paraphraser and the manner too; None where the source of a user's check cannot be read."""
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
