"""LLMBkd: a style that a language model is asked for, under clean labels (You et al. 2023, arXiv 2310.18603)."""

from __future__ import annotations

from typing import Any, Literal

from lightning_backdoor.attacks.paraphrase_base import ParaphraseAttack
from lightning_backdoor.language.paraphrase.by_model import Paraphraser
from lightning_backdoor.language.paraphrase.described_styles import described


class LLMBkd(ParaphraseAttack):
    """Rewrites training texts of the target label in any style that can be described; the style is the trigger.

    Labels are kept: poisoned training texts are correctly labelled. A language model is asked for the style without
    examples (section 3), and the answer that is closest in meaning to its text is taken; the paper takes the only
    answer of a large commercial model. How far the answers have the style is not checked. Answers of another model are
    read by :class:`~lightning_backdoor.language.FileParaphraser`. Rows to poison are drawn at random: the paper's
    selection by a clean classifier's probabilities, for which all rows of the target label are rewritten, is left out.

    Args:
        paraphraser: the model or file that gives the paraphrases; by default SmolLM2 with a prompt.
        style: australian, bible, default (no style but the model's own), gangster, gen-z, irish, lawyers, politicians,
            rare (words), shakespeare, sports, tiktok or tweets; a name of your own with a description.
        description: your own style: the end of the sentence "Rewrite the text ...", such as "the way a pirate would say
            it"; None takes the library's description of ``style``.
        label_policy: see :class:`BackdoorAttack`; the attack is meant for ``clean``.
        **kwargs: further arguments of :class:`BackdoorAttack` and :class:`TextClassifier`.

    Raises:
        InputError: the style is unknown and not described.

    Example::

        attack = LLMBkd(style="gen-z", poison_rate=0.05)
        attack = LLMBkd(style="pirate", description="the way a pirate would say it")
    """

    def __init__(
        self,
        paraphraser: Paraphraser | None = None,
        style: str = "bible",
        description: str | None = None,
        label_policy: Literal["dirty", "clean", "mixed"] = "clean",
        **kwargs: Any,
    ) -> None:
        super().__init__(described(style, description), paraphraser, label_policy=label_policy, **kwargs)
