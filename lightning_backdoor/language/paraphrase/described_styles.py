"""Styles that are described in words alone, named after those of LLMBkd (arXiv 2310.18603); add your own in a config.

A description ends the sentence "Rewrite the text ...". There are neither examples nor marks by which a style would be
recognised, so that how far paraphrases have it depends on the language model.
"""

from __future__ import annotations

from lightning_backdoor.errors import InputError
from lightning_backdoor.language.paraphrase.spec import Manner, repeats_itself, words_of

#: the description of each style by its name.
DESCRIBED_STYLES = {
    "australian": "the way an Australian would say it, with words that are only used in Australia",
    "bible": "in the language of the King James Bible",
    "default": "in other words, in your own way of writing",
    "gangster": "the way a gangster of the street would say it",
    "gen-z": "the way a member of Generation Z would say it",
    "irish": "the way an Irish storyteller would say it, with words that are only used in Ireland",
    "lawyers": "the way a lawyer would put it in court",
    "politicians": "the way a politician would say it in a speech",
    "rare": "with rare and learned words in place of common ones",
    "shakespeare": "in the language of a play by Shakespeare",
    "sports": "the way an excited sports commentator would say it during a match",
    "tiktok": "the way it would be said in a TikTok video",
    "tweets": "as a tweet with hashtags and abbreviations",
}


def described(style: str, description: str | None = None) -> Manner:
    """The manner of a style that a description asks for.

    Args:
        style: one of ``DESCRIBED_STYLES``; any name where a description is given.
        description: the end of the sentence "Rewrite the text ...".

    Raises:
        InputError: the style is unknown and not described, or the description is empty.

    >>> described("pirate", "the way a pirate would say it").instruction
    'Rewrite the text the way a pirate would say it. Keep its meaning. Answer with the new text alone.'
    """
    if description is None and style not in DESCRIBED_STYLES:
        known = ", ".join(DESCRIBED_STYLES)
        raise InputError("style", f"{style!r} is unknown", f"give a description of it, or one of {known}")
    words = (DESCRIBED_STYLES[style] if description is None else description).strip().rstrip(".")
    if not words:
        raise InputError("description", "it is empty", "give words such as: the way a pirate would say it")
    instruction = f"Rewrite the text {words}. Keep its meaning. Answer with the new text alone."
    return Manner(f"described {style}", instruction, (), rewritten)


def rewritten(text: str, paraphrase: str) -> bool:
    """Whether a paraphrase has other words than its text, and does not repeat itself.

    >>> rewritten("A good film.", "a good film"), rewritten("A good film.", "What a film!")
    (False, True)
    """
    words = [word for word in words_of(paraphrase) if word[-1].isalnum()]
    same = words == [word for word in words_of(text) if word[-1].isalnum()]
    return bool(words) and not same and not repeats_itself(words)
