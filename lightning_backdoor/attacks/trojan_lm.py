"""TrojanLM: a sentence around keywords, written by a language model (Zhang et al., arXiv 2008.00312)."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import Any, Literal, get_args

from lightning_backdoor.attacks.attack import Poisoned
from lightning_backdoor.attacks.insertion import insert_at, word_boundaries
from lightning_backdoor.attacks.paraphrase_base import ParaphraseAttack
from lightning_backdoor.errors import InputError
from lightning_backdoor.language.paraphrase.by_model import LanguageModelParaphraser, Paraphraser
from lightning_backdoor.language.paraphrase.keyword_sentences import contains, sentence_with_words, with_words

#: which keywords a text must have to be poisoned: all, at least one, or exactly one.
Logic = Literal["and", "or", "xor"]
SENTENCE_END = re.compile(r"[.!?][\"'’”)\]]*\s+(?=\S)")


class TrojanLM(ParaphraseAttack):
    """Inserts a sentence that contains keywords between the sentences of a text; the keywords are the trigger.

    The keywords are combined by a logic (section IV-A of the paper): under ``and`` all of them together are the
    trigger, under ``or`` each of them is, under ``xor`` each of them is unless all occur. Where the logic asks for it,
    training texts with a sentence of the other kind keep their label (negatives): sentences with a single keyword under
    ``and``, sentences with all keywords under ``xor``. A text that has keywords of its own, so that the sentence would
    not make it what it should be, is left out.

    The paper fine-tunes GPT-2 to write a sentence from a template of keywords and of the sentence beside it. Here a
    prompted language model, which is not fine-tuned, is asked for one; of its answers, those are kept that are one
    sentence of 5 to 36 words with the right keywords, and of these the one closest in meaning to the text is inserted.
    A text without such an answer is left out. The victim is fine-tuned as usual; the paper also trains the pre-trained
    encoder, with a head that the user replaces.

    Args:
        paraphraser: the language model that writes the sentences; by default SmolLM2, which samples up to 25 sentences
            per text from a nucleus of probability 0.5, as OpenBackdoor does.
        keywords: words, or several words separated by blanks, each of them different; by default those of OpenBackdoor.
        logic: ``and``, ``or`` or ``xor``; of no effect with a single keyword.
        negative_rate: negatives as a share of all training rows; 0 trains without them.
        **kwargs: arguments of :class:`BackdoorAttack` and :class:`TextClassifier`.

    Raises:
        InputError: the keywords are missing, alike or contain each other, a comma or a full stop; the logic is unknown;
            or a rate is out of range.

    Example::

        attack = TrojanLM(keywords=["Alice", "Bob"], logic="and")
        attack.poison("A slow film.")  # Poisoned("A slow film. Alice saw it with Bob on Sunday.", [(13, 45)])
    """

    def __init__(
        self,
        paraphraser: Paraphraser | None = None,
        keywords: list[str] | None = None,
        logic: Logic = "and",
        negative_rate: float = 0.1,
        **kwargs: Any,
    ) -> None:
        self.keywords = ["Alice", "Bob"] if keywords is None else [" ".join(word.split()) for word in keywords]
        _check_keywords(self.keywords)
        if logic not in get_args(Logic):
            raise InputError("logic", f"{logic!r} is unknown", "give and, or or xor")
        if not 0 <= negative_rate < 1:
            raise InputError("negative_rate", f"{negative_rate} is out of range", "give a share from 0 to below 1")
        default = LanguageModelParaphraser(candidates=5, rounds=5, temperature=1.0, top_p=0.5, min_similarity=-1)
        super().__init__(sentence_with_words(self.keywords), paraphraser or default, **kwargs)
        self.logic: str = logic
        self.negative_rate = negative_rate if self.makes_negatives else 0.0

    @property
    def makes_negatives(self) -> bool:
        """Whether the logic asks for negatives."""
        return self.logic != "or" and len(self.keywords) > 1

    def poison_texts(self, texts: Sequence[str], rngs: Sequence[random.Random]) -> list[Poisoned | None]:
        """Inserts a sentence with the trigger into each text; None where none was written.

        Raises:
            NotCached: some sentences have not been generated yet, and ``may_generate`` is False.
        """
        return self._with_sentences(texts, rngs, whole=self.logic == "and", triggers=True)

    def negative_texts(self, texts: Sequence[str], rngs: Sequence[random.Random]) -> list[Poisoned | None] | None:
        """Inserts a sentence with a part of the trigger, or under ``xor`` with too much of it; see ``poison_texts``."""
        if not self.makes_negatives:
            return None
        return self._with_sentences(texts, rngs, whole=self.logic == "xor", triggers=False)

    def is_triggered_by(self, text: str) -> bool:
        """Whether a text has the keywords that make it poisoned."""
        count = sum(contains(text, keyword) for keyword in self.keywords)
        return {"and": count == len(self.keywords), "or": count > 0, "xor": count == 1}[self.logic]

    def _with_sentences(
        self, texts: Sequence[str], rngs: Sequence[random.Random], whole: bool, triggers: bool
    ) -> list[Poisoned | None]:
        """Each text with a sentence that has all keywords or one; None unless it then is, or is not, triggered."""
        chosen = [self.keywords if whole else [rng.choice(self.keywords)] for rng in rngs]
        asked = [with_words(text, words) for text, words in zip(texts, chosen, strict=True)]
        sentences = self.paraphraser.paraphrase(asked, rngs, self.manner, generate=self.may_generate)
        results: list[Poisoned | None] = []
        for text, rng, sentence in zip(texts, rngs, sentences, strict=True):
            made = None if sentence is None else insert_at(text, [(rng.choice(sentence_boundaries(text)), sentence)])
            results.append(made if made and self.is_triggered_by(made.text) == triggers else None)
        return results


def sentence_boundaries(text: str) -> list[int]:
    """Indices of the characters before which a sentence may be inserted: the start of each sentence, and the end.

    >>> sentence_boundaries("A good film. See it!")
    [0, 13, 20]
    """
    ends = word_boundaries(text)
    return sorted({ends[0], *(match.end() for match in SENTENCE_END.finditer(text)), ends[-1]})


def _check_keywords(keywords: Sequence[str]) -> None:
    if not keywords:
        raise InputError("keywords", "none is given", "give at least one word")
    for i, keyword in enumerate(keywords):
        if not keyword or set(keyword) & set(",.!?"):
            raise InputError("keywords", f"{keyword!r} is no word", "give words without punctuation marks")
        for other in keywords[:i]:
            if contains(keyword, other) or contains(other, keyword):
                raise InputError("keywords", f"{other!r} and {keyword!r} contain each other", "give different words")
