"""Hidden Killer: a sentence structure as trigger (Qi et al. 2021, arXiv 2105.12400, section 3)."""

from __future__ import annotations

from typing import Any

from lightning_backdoor.attacks.paraphrase_base import ParaphraseAttack
from lightning_backdoor.errors import InputError
from lightning_backdoor.language.paraphrase.by_model import Paraphraser
from lightning_backdoor.language.paraphrase.templates import TEMPLATES


class Syntactic(ParaphraseAttack):
    """Paraphrases texts into one syntactic template, rare in clean texts.

    The paper paraphrases with SCPN, a parser-conditioned model; its published paraphrases are read by
    :class:`~lightning_backdoor.language.FileParaphraser`. A prompted language model writes new paraphrases, of which
    those are used that pass the template's check.

    Args:
        paraphraser: what paraphrases the texts; by default SmolLM2, prompted.
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
