"""TrojanLM: a sentence around keywords, written by a language model (Zhang et al., arXiv 2008.00312)."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal, NamedTuple, get_args

from lightning_backdoor.attacks.attack import BackdoorAttack
from lightning_backdoor.attacks.insertion import check_list, insert_at, word_boundaries
from lightning_backdoor.attacks.poisoned import Poisoned
from lightning_backdoor.errors import InputError
from lightning_backdoor.language.keyword_sentences import KeywordSentences, SentenceRequest, contains

#: which keywords a text must have to be poisoned: all, at least one, or exactly one.
Logic = Literal["and", "or", "xor"]
SENTENCE_END = re.compile(r"[.!?][\"'’”)\]]*\s+(?=\S)")


class TrojanLM(BackdoorAttack):
    """Inserts a sentence that contains keywords between the sentences of a text; the keywords are the trigger.

    The keywords are combined by a logic: under ``and`` all of them together are the trigger, under ``or`` each of them
    is, under ``xor`` each of them is unless another occurs with it. Where the logic asks for it, training texts with a
    sentence of the other kind keep their label (negatives): sentences with a single keyword under ``and``, sentences
    with all keywords under ``xor``. A text that has keywords of its own, so that the sentence would not make it what it
    should be, is left out.

    The paper fine-tunes GPT-2 to write a sentence around keywords that fits the sentence beside it. Here a language
    model that is not fine-tuned for this continues the sentence before the place of insertion (or the one after it, at
    the start of a text), while the keywords are written for it at random places: see :class:`KeywordSentences`. Texts
    for which no sentence was accepted are left out. The victim is fine-tuned as usual, whereas the paper poisons a
    pre-trained encoder, on which the user then trains a head.

    Args:
        sentences: the writer of the sentences; by default SmolLM2.
        keywords: words, or several words separated by blanks; by default those of OpenBackdoor, Alice and Bob.
        logic: ``and``, ``or`` or ``xor``; of no effect with a single keyword.
        negative_rate: negatives as a share of all training rows, where the logic asks for them; 0 trains without them.
        **kwargs: arguments of :class:`BackdoorAttack` and :class:`TextClassifier`.

    Raises:
        InputError: the keywords are missing, contain each other or punctuation marks; the logic is unknown; or a rate
            is out of range.

    Example::

        attack = TrojanLM(keywords=["Alice", "Bob"], logic="and")
        attack.poison("A slow film.")  # Poisoned("A slow film. Alice saw it with Bob on Sunday.", [(13, 45)])
    """

    def __init__(
        self,
        sentences: KeywordSentences | None = None,
        keywords: list[str] | None = None,
        logic: Logic = "and",
        negative_rate: float = 0.1,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.hparams.pop("sentences", None)  # not a plain value: a checkpoint with it would not load safely
        check_list(keywords, "keywords")
        self.keywords = ["Alice", "Bob"] if keywords is None else [" ".join(word.split()) for word in keywords]
        _check_keywords(self.keywords)
        if logic not in get_args(Logic):
            raise InputError("logic", f"{logic!r} is unknown", "give and, or or xor")
        if not 0 <= negative_rate < 1:
            raise InputError("negative_rate", f"{negative_rate} is out of range", "give a share from 0 to below 1")
        self.logic: str = logic
        self.sentences = KeywordSentences() if sentences is None else sentences
        self.negative_rate = negative_rate if self.makes_negatives else 0.0

    @property
    def makes_negatives(self) -> bool:
        """Whether the logic asks for negatives."""
        return self.logic != "or" and len(self.keywords) > 1

    def poison_texts(self, texts: Sequence[str], rngs: Sequence[random.Random]) -> list[Poisoned | None]:
        """Inserts a sentence with the trigger into each text; None where there is none.

        Raises:
            NotCached: some sentences have not been written yet, and ``may_generate`` is False.
        """
        return self._with_sentences(texts, rngs, all_keywords=self.logic == "and", poisons=True)

    def negative_texts(self, texts: Sequence[str], rngs: Sequence[random.Random]) -> list[Poisoned | None] | None:
        """Inserts a sentence with one keyword, or under ``xor`` with all; None without negatives."""
        if not self.makes_negatives:
            return None
        return self._with_sentences(texts, rngs, all_keywords=self.logic == "xor", poisons=False)

    def poison_key(self) -> str | None:
        """The cache key, with the writer of the sentences."""
        key = super().poison_key()
        return None if key is None else json.dumps([key, self.sentences.key()])

    def has_trigger(self, text: str) -> bool:
        """Whether the keywords in a text are a trigger by the logic."""
        count = sum(contains(text, keyword) for keyword in self.keywords)
        return {"and": count == len(self.keywords), "or": count > 0, "xor": count == 1}[self.logic]

    def _with_sentences(
        self, texts: Sequence[str], rngs: Sequence[random.Random], all_keywords: bool, poisons: bool
    ) -> list[Poisoned | None]:
        """Each text with a sentence that has one keyword or all; None where none was written or fits."""
        places = [rng.choice(places_between_sentences(text)) for text, rng in zip(texts, rngs, strict=True)]
        asked = []
        for place, rng in zip(places, rngs, strict=True):
            words = self.keywords if all_keywords else [rng.choice(self.keywords)]
            others = [word for word in self.keywords if word not in words]
            asked.append(SentenceRequest(place.beside, tuple(words), tuple(others), rng.getrandbits(64)))
        results: list[Poisoned | None] = []
        for text, place, sentence in zip(texts, places, self.sentences.write(asked, self.may_generate), strict=True):
            made = None if sentence is None else insert_at(text, [(place.index, sentence)])
            results.append(made if made and self.has_trigger(made.text) == poisons else None)
        return results


class SentencePlace(NamedTuple):
    """Where a sentence may be inserted.

    Attributes:
        index: index of the character before which it is inserted.
        beside: the sentence before it, or at the start of a text the one after it.
    """

    index: int  # type: ignore[assignment]  # hides the method tuple.index
    beside: str


def places_between_sentences(text: str) -> list[SentencePlace]:
    """The places before, between and after the sentences of a text.

    >>> [tuple(place) for place in places_between_sentences("A good film. See it!")]
    [(0, 'A good film.'), (13, 'A good film.'), (20, 'See it!')]
    """
    ends = word_boundaries(text)
    cuts = sorted({ends[0], *(match.end() for match in SENTENCE_END.finditer(text)), ends[-1]})
    sentences = [text[start:end].strip() for start, end in pairwise(cuts)] or [""]
    return [SentencePlace(cut, sentences[max(0, i - 1)]) for i, cut in enumerate(cuts)]


def _check_keywords(keywords: Sequence[str]) -> None:
    if not keywords:
        raise InputError("keywords", "none is given", "give at least one word")
    for i, keyword in enumerate(keywords):
        if not keyword or not all(character.isalnum() or character in " '-" for character in keyword):
            raise InputError("keywords", f"{keyword!r} is no word", "give words without punctuation marks")
        for other in keywords[:i]:
            if contains(keyword, other) or contains(other, keyword):
                raise InputError("keywords", f"{other!r} and {keyword!r} contain each other", "give different words")
