"""Sentences with given keywords, sampled from a language model as the continuation of a text."""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Sequence
from typing import NamedTuple

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lightning_backdoor.errors import InputError
from lightning_backdoor.language.language_model import (
    DEFAULT_LANGUAGE_MODEL,
    default_device,
    load_language_model,
    model_identity,
)
from lightning_backdoor.language.paraphrase.by_model import NotCached
from lightning_backdoor.language.paraphrase.spec import repeats_itself, words_of
from lightning_backdoor.language.sampling import SamplingRequest, answers
from lightning_backdoor.language.text_cache import TextCache
from lightning_backdoor.outputs.progress import progress

#: version of the sentences; increased when this file writes other sentences than before.
SENTENCES_FORMAT = 1
BETWEEN = 5  # most words that are sampled before a keyword
TOKENS_PER_WORD = 2
LAST_TOKENS = 24  # tokens after the last keyword
SENTENCES_AT_ONCE = 96  # sentences between two writes to the cache
CONTEXT = 256  # characters of the text that is continued
ONE_SENTENCE = re.compile(r"[^.!?\n]+[.!?]")


class SentenceRequest(NamedTuple):
    """What a sentence should be.

    Attributes:
        context: the text that it continues.
        keywords: words that it contains.
        others: words that it does not contain.
        seed: seed of its random choices.
    """

    context: str
    keywords: tuple[str, ...]
    others: tuple[str, ...]
    seed: int

    def cache_key(self) -> str:
        return json.dumps(self)


class KeywordSentences:
    """Writes sentences with keywords: the language model writes what stands before, between and after them.

    Per attempt the keywords are put in a random order, and up to five words are sampled before each; the sentence then
    goes on to its first full stop, exclamation or question mark. An attempt is accepted if it is one sentence of the
    right length with the right words that does not repeat itself; the first accepted one is taken, and cached. An
    interrupted run continues with the sentences that are missing. The model is loaded at the first of them.

    Args:
        model: hub name, folder, or GGUF file of a causal language model, also as ``package://`` name.
        attempts: largest number of attempts per sentence; the default is OpenBackdoor's.
        temperature: sampling temperature.
        top_p: probability of the nucleus that is sampled from (arXiv 1904.09751); the default is OpenBackdoor's.
        shortest: smallest number of words, punctuation marks not counted.
        longest: largest number of words.
        cache_dir: folder of the cache; ``LIGHTNING_BACKDOOR_CACHE`` or ``~/.cache/lightning_backdoor`` by default.

    Raises:
        InputError: a value is out of range.

    Example::

        asked = SentenceRequest("A slow film.", ("Alice", "Bob"), (), seed=0)
        KeywordSentences().write([asked])  # ["I saw Alice with Bob at the end."]
    """

    def __init__(
        self,
        model: str = DEFAULT_LANGUAGE_MODEL,
        attempts: int = 25,
        temperature: float = 1.0,
        top_p: float = 0.5,
        shortest: int = 5,
        longest: int = 36,
        cache_dir: str | None = None,
    ) -> None:
        if attempts < 1:
            raise InputError("attempts", f"{attempts} would give no sentence", "give at least 1")
        if not 0 < temperature < math.inf:
            raise InputError("temperature", f"{temperature} is not a temperature to sample at", "give a number above 0")
        if not 0 < top_p <= 1:
            raise InputError("top_p", f"{top_p} is not a probability above 0", "give a number above 0, up to 1")
        if not 0 < shortest <= longest:
            problem = f"no sentence has from {shortest} to {longest} words"
            raise InputError("shortest", problem, "give a number from 1 to longest")
        self.model = model
        self.attempts = attempts
        self.temperature = temperature
        self.top_p = top_p
        self.shortest = shortest
        self.longest = longest
        self.cache_dir = cache_dir
        self._language_model: tuple[PreTrainedModel, PreTrainedTokenizerBase] | None = None

    def key(self) -> str:
        """A string that changes with the content of the model and with the settings."""
        settings = [self.attempts, self.temperature, self.top_p, self.shortest, self.longest]
        return f"sentences {SENTENCES_FORMAT}/{model_identity(self.model)}/{settings}"

    def write(self, asked: Sequence[SentenceRequest], generate: bool = True) -> list[str | None]:
        """A sentence per request; None where no attempt was accepted. Equal requests have equal sentences.

        Args:
            asked: the requests.
            generate: whether sentences that are not in the cache may be generated now.

        Raises:
            NotCached: sentences are not in the cache, and ``generate`` is False.
            InputError: the model cannot be loaded, or the cache cannot be used.
        """
        cache = TextCache(self.key(), self.cache_dir)
        keys = [request.cache_key() for request in asked]
        stored = dict(zip(keys, cache.get(keys), strict=True))
        missing = [request for request in dict.fromkeys(asked) if stored[request.cache_key()] is None]
        if missing and not generate:
            raise NotCached(len(missing), "sentences", "sentences")
        with progress("writing sentences with keywords", len(missing), "texts") as advance:
            for start in range(0, len(missing), SENTENCES_AT_ONCE):
                part = missing[start : start + SENTENCES_AT_ONCE]
                written = self._accepted(part)
                values = {request.cache_key(): json.dumps(written.get(request)).encode() for request in part}
                cache.put(values)
                stored.update(values)
                advance(len(part))
        return [json.loads(stored[key] or b"null") for key in keys]

    def accepts(self, sentence: str, request: SentenceRequest) -> bool:
        """Whether a sentence is what was asked for."""
        words = [word for word in words_of(sentence) if word[-1].isalnum()]
        right = all(contains(sentence, word) for word in request.keywords)
        wrong = any(contains(sentence, word) for word in request.others)
        length = self.shortest <= len(words) <= self.longest
        return bool(ONE_SENTENCE.fullmatch(sentence)) and right and not wrong and length and not repeats_itself(words)

    def _accepted(self, asked: Sequence[SentenceRequest]) -> dict[SentenceRequest, str]:
        accepted: dict[SentenceRequest, str] = {}
        for attempt in range(self.attempts):
            left = [request for request in asked if request not in accepted]
            if not left:
                break
            for request, sentence in zip(left, self._attempts(left, attempt), strict=True):
                if self.accepts(sentence, request):
                    accepted[request] = sentence
        return accepted

    def _attempts(self, asked: Sequence[SentenceRequest], attempt: int) -> list[str]:
        """One attempt per request: for each keyword in turn some words and the keyword, and then the rest."""
        rngs = [random.Random(f"{request.seed}/{attempt}") for request in asked]
        orders = [rng.sample(request.keywords, len(request.keywords)) for request, rng in zip(asked, rngs, strict=True)]
        contexts = [request.context[-CONTEXT:].strip() or "\n" for request in asked]
        written = [""] * len(asked)
        for turn in range(max(map(len, orders))):
            going = [i for i, order in enumerate(orders) if turn < len(order)]
            counts = {i: rngs[i].randint(1 if turn else 0, BETWEEN) for i in going}
            asked_for = [(contexts[i], written[i], rngs[i], _tokens_of(counts[i])) for i in going]
            for i, more in zip(going, self._continue(asked_for), strict=True):
                words = more.split()
                kept = words[: counts[i]] if len(words) > counts[i] else words[:-1]  # the last may be a part of a word
                written[i] = " ".join(filter(None, [written[i], *kept, orders[i][turn]]))
        rests = self._continue([(contexts[i], written[i], rngs[i], LAST_TOKENS) for i in range(len(asked))])
        sentences = [f"{text}{rest}" for text, rest in zip(written, rests, strict=True)]
        return [match.group() if (match := ONE_SENTENCE.match(text)) else text for text in sentences]

    def _continue(self, asked: Sequence[tuple[str, str, random.Random, int]]) -> list[str]:
        """What the language model writes after a context and a beginning, in some number of tokens."""
        if self._language_model is None:
            self._language_model = load_language_model(self.model, default_device(), self.cache_dir)
        network, tokenizer = self._language_model
        texts = [""] * len(asked)
        requests = {}
        for i, (context, beginning, rng, tokens) in enumerate(asked):
            opening = f" {beginning}" if beginning else ""
            length = len(tokenizer(opening, add_special_tokens=False)["input_ids"]) + tokens
            if tokens:
                requests[i] = SamplingRequest(context, opening, rng, length)
        written = answers(network, tokenizer, list(requests.values()), self.temperature, self.top_p)
        for i, text in zip(requests, written, strict=True):
            beginning = asked[i][1]
            texts[i] = text[len(beginning) :] if text.startswith(beginning) else ""  # some tokenizers change blanks
        return texts


def _tokens_of(words: int) -> int:
    """Tokens that are sampled to get some words, the last of which may be cut off."""
    return TOKENS_PER_WORD * words + 1 if words else 0


def contains(text: str, word: str) -> bool:
    """Whether a text contains a word, or several with blanks between them, in any case.

    >>> contains("Bobby met ALICE.", "Alice"), contains("Bobby met ALICE.", "Bob")
    (True, False)
    """
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE) is not None
