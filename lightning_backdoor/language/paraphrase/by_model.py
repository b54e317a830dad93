"""Paraphrases by a prompted language model: several candidates a text, of which the closest acceptable one is kept."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lightning_backdoor.errors import InputError
from lightning_backdoor.language.language_model import (
    DEFAULT_MODEL,
    default_device,
    load_language_model,
    model_identity,
)
from lightning_backdoor.language.paraphrase.spec import Manner, prompt
from lightning_backdoor.language.sampling import Row, answers
from lightning_backdoor.language.similarity import DEFAULT_ENCODER, SentenceEncoder
from lightning_backdoor.language.text_cache import TextCache

TEXTS_A_PUT = 32  # between two writes to the cache
LONGER = 1.2  # tokens of a paraphrase by those of its text
MORE = 12  # tokens beside


class Paraphraser(Protocol):
    """Puts texts into other words."""

    def paraphrase(
        self, texts: Sequence[str], rngs: Sequence[random.Random], manner: Manner, generate: bool = True
    ) -> list[str | None]:
        """The paraphrase of each text; None where there is no acceptable one.

        Args:
            texts: to be paraphrased.
            rngs: of each text; equal ones give equal paraphrases.
            manner: what the paraphrases should be like.
            generate: whether what is not in the cache may be made now.

        Raises:
            NotCached: it may not, and some are not.
        """
        ...

    def key(self) -> str:
        """Names all that decides the paraphrases beside text, generator and manner."""
        ...


class NotCached(InputError):
    """Paraphrases that may not be made now are not in the cache.

    Attributes:
        missing: of so many texts.
    """

    def __init__(self, missing: int) -> None:
        super().__init__(
            "paraphraser", f"the paraphrases of {missing} texts are not in the cache", "generate them first"
        )
        self.missing = missing

    def __reduce__(self) -> tuple[type[NotCached], tuple[int]]:
        return type(self), (self.missing,)


class _Asked(NamedTuple):
    """A text, and the number that decides its candidates."""

    text: str
    seed: int

    def name(self) -> str:
        return f"{self.seed}/{self.text}"


class LanguageModelParaphraser:
    """Asks a causal language model for candidates and keeps the one in the manner that is closest in meaning.

    Closeness is the cosine of sentence embeddings. Candidates are drawn in rounds, the later ones for texts without an
    acceptable candidate alone. All candidates are kept in the cache, so what is changed in the manner's check or in
    ``min_similarity`` needs no new ones for texts that still have an acceptable one, and a run that is cut off goes on
    where it was. The model is loaded at the first text that is not in the cache.

    Args:
        model: hub name, folder, or GGUF file, also as ``package://`` name; in float32, since bfloat16 is hardly
            faster on a processor (1.2 times), and what it rounds a text to depends on its batch mates.
        candidates: a text and round.
        rounds: at most.
        temperature: of sampling.
        top_p: of sampling (arXiv 1904.09751).
        min_similarity: floor of the cosine, from -1 to 1.
        sentence_encoder: hub name, folder, or ``package://`` name.
        cache_dir: folder of the cache; ``LIGHTNING_BACKDOOR_CACHE`` or ``~/.cache/lightning_backdoor`` by default.

    Raises:
        InputError: a value is out of range.

    Example::

        paraphraser = LanguageModelParaphraser()
        paraphraser.paraphrase(["A good film."], [random.Random(0)], STYLES["bible"])  # ["And behold, ..."]
    """

    def __init__(
        self,
        model: str = DEFAULT_MODEL,
        candidates: int = 3,
        rounds: int = 3,
        temperature: float = 0.5,
        top_p: float = 0.9,
        min_similarity: float = 0.4,
        sentence_encoder: str = DEFAULT_ENCODER,
        cache_dir: str | None = None,
    ) -> None:
        for name, number in (("candidates", candidates), ("rounds", rounds)):
            if number < 1:
                raise InputError(name, f"{number} gives no paraphrase", "give at least 1")
        if temperature <= 0:
            raise InputError("temperature", f"{temperature} cannot be sampled at", "give a number above 0")
        if not 0 < top_p <= 1:
            raise InputError("top_p", f"{top_p} is no probability", "give a number above 0, up to 1")
        if not -1 <= min_similarity <= 1:
            raise InputError("min_similarity", f"{min_similarity} is no cosine", "give a number from -1 to 1")
        self.model = model
        self.candidates = candidates
        self.rounds = rounds
        self.temperature = temperature
        self.top_p = top_p
        self.min_similarity = min_similarity
        self.sentence_encoder = sentence_encoder
        self.cache_dir = cache_dir
        self._encoder = SentenceEncoder(sentence_encoder)
        self._loaded: tuple[PreTrainedModel, PreTrainedTokenizerBase] | None = None
        self._drawn_by: str | None = None

    def paraphrase(
        self, texts: Sequence[str], rngs: Sequence[random.Random], manner: Manner, generate: bool = True
    ) -> list[str | None]:
        """The paraphrase of each text; None where there is no acceptable one. See :class:`Paraphraser`.

        Raises:
            NotCached: candidates of some texts are not in the cache, and ``generate`` is false.
            InputError: a model cannot be loaded, or the cache cannot be used.
        """
        asked = [_Asked(text, rng.getrandbits(64)) for text, rng in zip(texts, rngs, strict=True)]
        found: dict[_Asked, str] = {}
        left = list(dict.fromkeys(asked))
        not_cached = 0
        for turn in range(self.rounds):
            cache = TextCache(self._what(manner, turn), self.cache_dir)
            known = cache.get([one.name() for one in left])
            missing = [one for one, value in zip(left, known, strict=True) if value is None]
            if missing and generate:
                self._generate(missing, manner, turn, cache)
                known = cache.get([one.name() for one in left])
            elif missing:
                not_cached += len(missing)
            tried = [
                (one, self._best(one.text, value, manner)) for one, value in zip(left, known, strict=True) if value
            ]
            found.update((one, best) for one, best in tried if best is not None)
            left = [one for one, best in tried if best is None]
        if not_cached:
            raise NotCached(not_cached)
        return [found.get(one) for one in asked]

    def key(self) -> str:
        """Names the contents of both models, and the settings."""
        return f"{self._identity()}/{self.candidates}/{self.rounds}/{self.min_similarity}"

    def _identity(self) -> str:
        """What candidates and similarities come from, beside text, manner and generator."""
        if self._drawn_by is None:
            models = [model_identity(self.model), model_identity(self.sentence_encoder)]
            self._drawn_by = "/".join([*models, str(self.temperature), str(self.top_p), str(LONGER), str(MORE)])
        return self._drawn_by

    def _what(self, manner: Manner, turn: int) -> str:
        asked = json.dumps([manner.instruction, manner.examples, manner.openings])
        prompts = hashlib.sha256(asked.encode()).hexdigest()
        return f"paraphrase candidates/{self._identity()}/{prompts}/{self.candidates}/{turn}"

    def _best(self, text: str, value: bytes, manner: Manner) -> str | None:
        candidates: list[tuple[float, str]] = [(similarity, found) for found, similarity in json.loads(value)]
        close = sorted((pair for pair in candidates if pair[0] >= self.min_similarity), reverse=True)
        return next((found for _, found in close if manner.accepts(text, found)), None)

    def _generate(self, asked: Sequence[_Asked], manner: Manner, turn: int, cache: TextCache) -> None:
        """Draws candidates into the cache, shorter texts first: batches are of similar length."""
        if self._loaded is None:
            self._loaded = load_language_model(self.model, default_device(), self.cache_dir)
        network, tokenizer = self._loaded
        rows = {one: self._rows(one, manner, turn, tokenizer) for one in asked}
        order = sorted(asked, key=lambda one: (rows[one][0].most, one))
        many = TEXTS_A_PUT if network.device.type == "cpu" else 10 * TEXTS_A_PUT
        name = f"paraphrases, round {turn + 1} of {self.rounds}"
        with tqdm(total=len(order), desc=name, unit=" texts", disable=None, leave=False, delay=3) as bar:
            for start in range(0, len(order), many):
                group = order[start : start + many]
                written = answers(
                    network, tokenizer, [row for one in group for row in rows[one]], self.temperature, self.top_p
                )
                originals = [one.text for one in group for _ in range(self.candidates)]
                pairs = list(zip(written, self._encoder.similarity(originals, written), strict=True))
                of_texts = [pairs[i : i + self.candidates] for i in range(0, len(pairs), self.candidates)]
                cache.put(
                    {one.name(): json.dumps(of_text).encode() for one, of_text in zip(group, of_texts, strict=True)}
                )
                bar.update(len(group))

    def _rows(self, asked: _Asked, manner: Manner, turn: int, tokenizer: PreTrainedTokenizerBase) -> list[Row]:
        most = int(LONGER * len(tokenizer(asked.text, add_special_tokens=False)["input_ids"])) + MORE
        first = turn * self.candidates
        rngs = [random.Random(f"{asked.seed}/{i}") for i in range(first, first + self.candidates)]
        openings = [rng.choice(manner.openings) if manner.openings else "" for rng in rngs]
        asks = prompt(tokenizer, manner, asked.text)
        return [Row(asks, opening, rng, most) for opening, rng in zip(openings, rngs, strict=True)]
