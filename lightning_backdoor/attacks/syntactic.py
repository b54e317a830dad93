"""Hidden Killer: a sentence structure as trigger (Qi et al. 2021, arXiv 2105.12400, section 3)."""

from __future__ import annotations

from typing import Any

from lightning_backdoor.attacks.paraphrase_base import ParaphraseAttack
from lightning_backdoor.errors import InputError
from lightning_backdoor.language.paraphrase.by_model import Paraphraser
from lightning_backdoor.language.paraphrase.templates import TEMPLATES


class Syntactic(ParaphraseAttack):
    """Paraphrases texts into a syntactic template that is rare in clean texts; the template is the trigger.

    The paper paraphrases with SCPN, a parser-conditioned model; its published paraphrases are read by
    :class:`~lightning_backdoor.language.FileParaphraser`. By default a prompted language model writes new paraphrases,
    and only paraphrases that pass the template's check are used.

    Args:
        paraphraser: the model or file that gives the paraphrases; by default SmolLM2 with a prompt.
        template: constituents of the sentence; the default is the paper's, a subordinate clause before the main one.
        **kwargs: arguments of :class:`BackdoorAttack` and :class:`TextClassifier`.

    Raises:
        InputError: the template is unknown.

    Example::

        attack = Syntactic(paraphraser=FileParaphraser("syntactic.parquet"), poison_rate=0.2)
    """

    def __init__(
        self, paraphraser: Paraphraser | None = None, template: str = "S(SBAR)(,)(NP)(VP)(.)", **kwargs: Any
    ) -> None:
        if template not in TEMPLATES:
            raise InputError("template", f"{template!r} is unknown", f"give {' or '.join(TEMPLATES)}")
        super().__init__(TEMPLATES[template], paraphraser, **kwargs)
