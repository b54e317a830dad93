"""Paraphrases by a prompted language model: the acceptable candidate closest in meaning is kept per text."""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lightning_backdoor.errors import InputError
from lightning_backdoor.language.language_model import (
    DEFAULT_LANGUAGE_MODEL,
    default_device,
    load_language_model,
    model_identity,
)
from lightning_backdoor.language.paraphrase.spec import Manner, prompt
from lightning_backdoor.language.precision import FLOAT32, check_precision, chosen_precision
from lightning_backdoor.language.public_encoder import DEFAULT_ENCODER
from lightning_backdoor.language.sampling import SamplingRequest, answers
from lightning_backdoor.language.similarity import SentenceEncoder
from lightning_backdoor.language.text_cache import TextCache
from lightning_backdoor.outputs.progress import progress

TEXTS_PER_WRITE = 32  # texts between two writes to the cache
# a paraphrase has at most LENGTH_FACTOR times the tokens of its text, and EXTRA_TOKENS more
LENGTH_FACTOR = 1.2
EXTRA_TOKENS = 12


class Paraphraser(Protocol):
    """Interface of paraphrasers, such as :class:`LanguageModelParaphraser` and :class:`FileParaphraser`.

    :meth:`paraphrase` returns a paraphrase, or None, for each text; :meth:`key` identifies its settings.
    """

    def paraphrase(
        self, texts: Sequence[str], rngs: Sequence[random.Random], manner: Manner, generate: bool = True
    ) -> list[str | None]:
        """The paraphrase of each text; None if no acceptable paraphrase was found.

        Args:
            texts: the texts to paraphrase.
            rngs: a random generator per text; equal generators give equal paraphrases of a text.
            manner: the style or template that the paraphrases should have.
            generate: whether paraphrases that are not in the cache may be generated now.

        Raises:
            NotCached: paraphrases are not in the cache, and ``generate`` is false.
        """
        ...

    def key(self) -> str:
        """A string that changes with everything that determines paraphrases except text, generator and manner."""
        ...


class NotCached(InputError):
    """Raised if texts that a language model writes are not in the cache and may not be generated now.

    Args:
        missing: the number of texts of which something is not in the cache.
        field: the argument that names the model.
        what: what is missing.

    Attributes:
        missing: see above.
        what: see above.
    """

    def __init__(self, missing: int, field: str = "paraphraser", what: str = "paraphrases") -> None:
        super().__init__(field, f"the {what} of {missing} texts are not in the cache", "generate them first")
        self.missing = missing
        self.what = what

    def __reduce__(self) -> tuple[type[NotCached], tuple[int, str, str]]:
        return type(self), (self.missing, self.field, self.what)


class _SeededText(NamedTuple):
    """A text to paraphrase, and the seed of its candidates."""

    text: str
    seed: int

    def cache_key(self) -> str:
        return f"{self.seed}/{self.text}"


class LanguageModelParaphraser:
    """Paraphrases by a prompted causal language model, chosen among candidates by similarity in meaning.

    Per text, the model writes several candidates. Among the candidates in the requested manner, the candidate is kept
    whose sentence embedding has the highest cosine with the embedding of the text. Texts without an acceptable
    candidate get further rounds of candidates.

    All candidates are cached. A run that is interrupted continues where it stopped, and after a change of
    ``min_similarity`` or of the manner's check, only texts that have no acceptable candidate any more get new ones. The
    model is loaded at the first text that is not in the cache.

    Args:
        model: hub name, folder, or GGUF file, also as ``package://`` name; loaded without running code of its
            own.
        candidates: candidates per text and round.
        rounds: maximum number of rounds per text.
        temperature: sampling temperature.
        top_p: probability of the nucleus that is sampled from (arXiv 1904.09751).
        min_similarity: minimum cosine of a paraphrase with its text, from -1 to 1.
        sentence_encoder: encoder of the sentence embeddings: hub name, folder, or ``package://`` name.
        cache_dir: folder of the cache; ``LIGHTNING_BACKDOOR_CACHE`` or ``~/.cache/lightning_backdoor`` by default.
        precision: precision of the language model: ``32-true``, ``bf16-true``, or ``auto``, which is ``bf16-true`` on
            devices that have bfloat16 in hardware. Each precision has candidates of its own. The default is
            float32 on all devices, so that poisoned rows do not depend on the machine; in bfloat16, a text's candidates
            may also depend on the other texts of its batch.

    Raises:
        InputError: a value is out of range.

    Example::

        paraphraser = LanguageModelParaphraser()
        paraphraser.paraphrase(["A good film."], [random.Random(0)], STYLES["bible"])  # ["And behold, ..."]
    """

    def __init__(
        self,
        model: str = DEFAULT_LANGUAGE_MODEL,
        candidates: int = 3,
        rounds: int = 3,
        temperature: float = 0.5,
        top_p: float = 0.9,
        min_similarity: float = 0.4,
        sentence_encoder: str = DEFAULT_ENCODER,
        cache_dir: str | None = None,
        precision: str = FLOAT32,
    ) -> None:
        for name, number in (("candidates", candidates), ("rounds", rounds)):
            if number < 1:
                raise InputError(name, f"{number} would give no paraphrase", "give at least 1")
        if not 0 < temperature < math.inf:
            raise InputError("temperature", f"{temperature} is not a temperature to sample at", "give a number above 0")
        if not 0 < top_p <= 1:
            raise InputError("top_p", f"{top_p} is not a probability above 0", "give a number above 0, up to 1")
        if not -1 <= min_similarity <= 1:
            raise InputError("min_similarity", f"{min_similarity} is not a cosine", "give a number from -1 to 1")
        self.model = model
        self.candidates = candidates
        self.rounds = rounds
        self.temperature = temperature
        self.top_p = top_p
        self.min_similarity = min_similarity
        self.sentence_encoder = sentence_encoder
        self.cache_dir = cache_dir
        self.precision = check_precision(precision)
        self._encoder = SentenceEncoder(sentence_encoder)
        self._language_model: tuple[PreTrainedModel, PreTrainedTokenizerBase] | None = None
        self._models: str | None = None

    def paraphrase(
        self, texts: Sequence[str], rngs: Sequence[random.Random], manner: Manner, generate: bool = True
    ) -> list[str | None]:
        """The paraphrase of each text; None if no acceptable paraphrase was found. See :class:`Paraphraser`.

        Raises:
            NotCached: candidates of some texts are not in the cache, and ``generate`` is false.
            InputError: a model cannot be loaded, or the cache cannot be used.
        """
        seeded = [_SeededText(text, rng.getrandbits(64)) for text, rng in zip(texts, rngs, strict=True)]
        accepted: dict[_SeededText, str] = {}
        open_texts = list(dict.fromkeys(seeded))  # texts without an acceptable candidate so far
        not_cached = 0
        for turn in range(self.rounds):
            cache = TextCache(self._computation(manner, turn), self.cache_dir, is_whole=self._is_whole)
            keys = [text.cache_key() for text in open_texts]
            values = cache.get(keys)
            missing = [text for text, value in zip(open_texts, values, strict=True) if value is None]
            if missing and generate:
                self._generate(missing, manner, turn, cache)
                values = cache.get(keys)
            elif missing:
                not_cached += len(missing)
            tried = [
                (text, self._closest(text.text, value, manner))
                for text, value in zip(open_texts, values, strict=True)
                if value
            ]
            accepted.update((text, paraphrase) for text, paraphrase in tried if paraphrase is not None)
            open_texts = [text for text, paraphrase in tried if paraphrase is None]
        if not_cached:
            raise NotCached(not_cached)
        return [accepted.get(text) for text in seeded]

    def key(self) -> str:
        """A string that changes with the content of both models and with the settings."""
        return f"{self._identity()}/{self.candidates}/{self.rounds}/{self.min_similarity}"

    def _identity(self) -> str:
        """A string that changes with all that determines candidates except text, manner and generator."""
        if self._models is None:
            contents = [model_identity(self.model), model_identity(self.sentence_encoder)]
            sampling = [self.temperature, self.top_p, LENGTH_FACTOR, EXTRA_TOKENS]
            precision = chosen_precision(self.precision, default_device())
            others = [] if precision == FLOAT32 else [precision]
            self._models = "/".join([*contents, *map(str, sampling), *others])
        return self._models

    def _computation(self, manner: Manner, turn: int) -> str:
        prompt_parts = json.dumps([manner.instruction, manner.examples, manner.openings])
        prompts = hashlib.sha256(prompt_parts.encode()).hexdigest()
        return f"paraphrase candidates/{self._identity()}/{prompts}/{self.candidates}/{turn}"

    def _closest(self, text: str, value: bytes, manner: Manner) -> str | None:
        """The acceptable cached candidate that is closest in meaning to a text; None if there is none."""
        candidates: list[tuple[float, str]] = [(similarity, candidate) for candidate, similarity in json.loads(value)]
        close = sorted((pair for pair in candidates if pair[0] >= self.min_similarity), reverse=True)
        return next((candidate for _, candidate in close if manner.accepts(text, candidate)), None)

    def _is_whole(self, text: str, value: bytes) -> bool:
        """Whether a cached value is JSON of as many candidates, each with its similarity, as there should be."""
        try:
            pairs = [(str(candidate), float(similarity)) for candidate, similarity in json.loads(value)]
        except (ValueError, TypeError):
            return False
        return len(pairs) == self.candidates

    def _generate(self, texts: Sequence[_SeededText], manner: Manner, turn: int, cache: TextCache) -> None:
        """Samples candidates into the cache, shorter texts first, so that batches are of similar length."""
        if self._language_model is None:
            device = default_device()
            precision = chosen_precision(self.precision, device)
            self._language_model = load_language_model(self.model, device, self.cache_dir, precision)
        network, tokenizer = self._language_model
        requests = {text: self._requests(text, manner, turn, tokenizer) for text in texts}
        order = sorted(texts, key=lambda text: (requests[text][0].max_tokens, text))
        group_size = TEXTS_PER_WRITE if network.device.type == "cpu" else 10 * TEXTS_PER_WRITE
        with progress(f"paraphrasing, round {turn + 1} of {self.rounds}", len(order), "texts") as advance:
            for start in range(0, len(order), group_size):
                group = order[start : start + group_size]
                candidates = answers(
                    network,
                    tokenizer,
                    [request for text in group for request in requests[text]],
                    self.temperature,
                    self.top_p,
                )
                originals = [text.text for text in group for _ in range(self.candidates)]
                pairs = list(zip(candidates, self._encoder.similarity(originals, candidates), strict=True))
                values = {}
                for i, text in enumerate(group):
                    of_text = pairs[i * self.candidates : (i + 1) * self.candidates]
                    values[text.cache_key()] = json.dumps(of_text).encode()
                cache.put(values)
                advance(len(group))

    def _requests(
        self, text: _SeededText, manner: Manner, turn: int, tokenizer: PreTrainedTokenizerBase
    ) -> list[SamplingRequest]:
        tokens = tokenizer(text.text, add_special_tokens=False)["input_ids"]
        max_tokens = int(LENGTH_FACTOR * len(tokens)) + EXTRA_TOKENS
        first = turn * self.candidates
        rngs = [random.Random(f"{text.seed}/{i}") for i in range(first, first + self.candidates)]
        openings = [rng.choice(manner.openings) if manner.openings else "" for rng in rngs]
        full_prompt = prompt(tokenizer, manner, text.text)
        return [
            SamplingRequest(full_prompt, opening, rng, max_tokens) for opening, rng in zip(openings, rngs, strict=True)
        ]
