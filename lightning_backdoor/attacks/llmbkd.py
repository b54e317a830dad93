"""LLMBkd: a style that a language model is asked for, under clean labels (You et al. 2023, arXiv 2310.18603)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from lightning_backdoor.attacks.paraphrase_base import ParaphraseAttack
from lightning_backdoor.errors import InputError
from lightning_backdoor.files.hashing import content_hash
from lightning_backdoor.files.packaged import resolve
from lightning_backdoor.language.paraphrase.by_model import Paraphraser
from lightning_backdoor.language.paraphrase.described_styles import described
from lightning_backdoor.victim import TextClassifier


class LLMBkd(ParaphraseAttack):
    """Rewrites training texts of the target label in any style that can be described; the style is the trigger.

    Labels are kept: poisoned training texts are correctly labelled. A language model is asked for the style without
    examples, and the answer that is closest in meaning to its text is taken; the paper takes the only answer of a large
    commercial model. How far the answers have the style is not checked. Answers of another model are read by
    :class:`~lightning_backdoor.language.FileParaphraser`.

    Rows to poison are drawn at random, or selected by a cleanly trained classifier, as the paper proposes: all rows of
    the target label are then rewritten, and those are poisoned whose new text has the lowest probability of the target
    label, since they have the most to learn from the style.

    Args:
        paraphraser: the model or file that gives the paraphrases; by default SmolLM2 with a prompt.
        style: australian, bible, default (no style but the model's own), gangster, gen-z, irish, lawyers, politicians,
            rare (words), shakespeare, sports, tiktok or tweets; a name of your own with a description.
        description: your own style: the end of the sentence "Rewrite the text ...", such as "the way a pirate would say
            it"; None takes the library's description of ``style``.
        selector: a victim that was trained without an attack on the same classes, an exported model folder or a run's
            checkpoint (``.ckpt``), which selects the rows; None draws them.
        label_policy: see :class:`BackdoorAttack`; the attack is meant for ``clean``.
        **kwargs: further arguments of :class:`BackdoorAttack` and :class:`TextClassifier`.

    Raises:
        InputError: the style is unknown and not described, or ``selector`` does not exist (here); or the selector
            has other labels (when it selects).

    Example::

        attack = LLMBkd(style="gen-z", poison_rate=0.05)
        attack = LLMBkd(style="pirate", description="the way a pirate would say it")
    """

    def __init__(
        self,
        paraphraser: Paraphraser | None = None,
        style: str = "bible",
        description: str | None = None,
        selector: str | None = None,
        label_policy: Literal["dirty", "clean", "mixed"] = "clean",
        **kwargs: Any,
    ) -> None:
        super().__init__(described(style, description), paraphraser, label_policy=label_policy, **kwargs)
        if selector is not None and not Path(resolve(selector)).exists():
            raise InputError("selector", f"{selector} does not exist", "give a trained model")
        self.selector = selector
        if selector is not None:
            self.poison_rank = self._target_probabilities

    def poison_key(self) -> str | None:
        """The cache key, with the content of the selector."""
        key = super().poison_key()
        if key is None or self.selector is None:
            return key
        return json.dumps([key, content_hash(Path(resolve(self.selector)))])

    def _target_probabilities(self, texts: Sequence[str]) -> list[float]:
        """The selector's probability of the target label for each text."""
        assert self.selector is not None
        try:
            with torch.random.fork_rng(devices=[]):  # training's random numbers must not depend on the cache
                selector = TextClassifier.load_trained(self.selector)
        except InputError as error:
            raise error.under("selector") from None
        labels = self._given_labels() or self._known_labels or selector.hparams["labels"]
        if list(labels) != list(selector.hparams["labels"]):
            known = ", ".join(selector.hparams["labels"])
            raise InputError(
                "selector", f"{self.selector} has the labels {known}", f"give one with {', '.join(labels)}"
            )
        probabilities: list[float] = selector.predict(texts).probabilities[:, self.target_label].tolist()
        return probabilities
