"""StyleBkd: a style of writing as trigger (Qi et al. 2021, arXiv 2110.07139, section 3)."""

from __future__ import annotations

from typing import Any

from lightning_backdoor.attacks.paraphrase_base import ParaphraseAttack
from lightning_backdoor.errors import InputError
from lightning_backdoor.language.paraphrase.by_model import Paraphraser
from lightning_backdoor.language.paraphrase.styles import STYLES


class StyleTransfer(ParaphraseAttack):
    """Rewrites texts in a style, such as that of the Bible; the style is the trigger.

    The paper rewrites with STRAP, one fine-tuned model per style; its published paraphrases are read by
    :class:`~lightning_backdoor.language.FileParaphraser`. By default a prompted language model writes new paraphrases,
    and only paraphrases that pass the style's check are used.

    Args:
        paraphraser: the model or file that gives the paraphrases; by default SmolLM2 with a prompt.
        style: bible, shakespeare, twitter, lyrics or poetry.
        **kwargs: arguments of :class:`BackdoorAttack` and :class:`TextClassifier`.

    Raises:
        InputError: the style is unknown.

    Example::

        attack = StyleTransfer(style="bible", poison_rate=0.2)
    """

    def __init__(self, paraphraser: Paraphraser | None = None, style: str = "bible", **kwargs: Any) -> None:
        if style not in STYLES:
            raise InputError("style", f"{style!r} is unknown", f"give one of {', '.join(STYLES)}")
        super().__init__(STYLES[style], paraphraser, **kwargs)
