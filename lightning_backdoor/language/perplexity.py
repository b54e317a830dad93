"""Exact perplexities of texts, and of each text without each of its words in turn, by a causal language model.

The perplexity of a text is exp(mean next-token cross-entropy) of the text alone: padding does not count, and no special
token is added. Words are separated by single spaces, or by nothing in scripts without spaces
(:func:`lightning_backdoor.words.blank_spans`); a text without its i-th word is the other words, joined likewise. The
texts without a word are not read in full: see :mod:`lightning_backdoor.language.prefixes`.
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from lightning_utilities.core.rank_zero import rank_zero_info
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lightning_backdoor.errors import InputError
from lightning_backdoor.language.language_model import (
    DEFAULT_LANGUAGE_MODEL,
    default_device,
    load_language_model,
    model_identity,
)
from lightning_backdoor.language.likelihood import plain_inference, plain_log_likelihoods
from lightning_backdoor.language.lookups import untimed
from lightning_backdoor.language.precision import AUTO, FLOAT32, check_precision, chosen_precision
from lightning_backdoor.language.prefixes import shared_log_likelihoods, shares_prefixes, variant
from lightning_backdoor.language.text_cache import TextCache
from lightning_backdoor.models.positions import readable_tokens
from lightning_backdoor.outputs.progress import progress
from lightning_backdoor.words import blank_spans, segmenter, without_spaces, without_word

#: maximum of squared words per group, about twice the tokens of all its variants: the work between two cache writes.
GROUP_COST = 1 << 15
#: of accelerators, which read many times as many tokens in a second, and are idle between groups.
ACCELERATOR_GROUP_COST = 1 << 17
#: maximum of words per group, padding included; bounds the memory of the keys and values.
GROUP_WORDS = 1 << 12
#: words beyond the last token read that are treated like words that are read, since a token may span words.
MARGIN = 16
HIGHEST_LOSS = 700.0  # exp overflows beyond it

#: a function from a group of texts to the numbers that are cached for each.
Compute = Callable[[Sequence[str]], list[list[float]]]


class LeaveOneOut(NamedTuple):
    """The perplexity of a text, and its perplexity without each of its words in turn.

    Attributes:
        text: perplexity of the whole text; NaN if it has fewer than two tokens.
        without: perplexity of the text without its i-th word, for each i; NaN if fewer than two tokens remain.
    """

    text: float
    without: list[float]


def leave_one_out(
    network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], shares: bool
) -> list[LeaveOneOut]:
    """Perplexities of a group of texts, and of each text without each of its words in turn.

    Args:
        network: a causal language model, in evaluation mode.
        tokenizer: its tokenizer.
        texts: texts of similar length, so that little padding is computed.
        shares: whether shared prefixes may be read once; see :func:`shares_prefixes`.
    """
    max_length = readable_tokens(network.config.get_text_config())
    words_by_text = [blank_spans(text) for text in texts]
    readable = [_read_part(*item, tokenizer, max_length) for item in zip(texts, words_by_text, strict=True)]
    shortened = [without_word(part.text, part.spans, i) for part in readable for i in range(part.words)]
    encoding = tokenizer([*(part.text for part in readable), *shortened], add_special_tokens=False, verbose=False)
    uncut = encoding["input_ids"]
    ids = [row[:max_length] for row in uncut]
    full = ids[: len(texts)]
    owners = [text for text, part in enumerate(readable) for _ in range(part.words)]
    variants = [variant(text, full[text], row) for text, row in zip(owners, ids[len(texts) :], strict=True)]
    distinct = list({(item.text, tuple(item.ids)): item for item in variants}.values())
    with plain_inference(network.device):
        if shares:
            of_texts, of_distinct = shared_log_likelihoods(network, full, distinct)
        else:
            both = plain_log_likelihoods(network, [*full, *(item.ids for item in distinct)])
            of_texts, of_distinct = both[: len(full)], both[len(full) :]
    of_variant = {(item.text, tuple(item.ids)): value for item, value in zip(distinct, of_distinct, strict=True)}
    results = [LeaveOneOut(_perplexity(value, row), []) for value, row in zip(of_texts, full, strict=True)]
    for text, row, shared in variants:
        # the word is beyond the cut: the tokens read are the same with and without it
        beyond_cut = len(uncut[text]) > len(full[text]) == shared
        value = math.nan if beyond_cut else _perplexity(of_variant[text, tuple(row)], row)
        results[text].without.append(value)
    for result, spans in zip(results, words_by_text, strict=True):
        result.without.extend([math.nan] * (len(spans) - len(result.without)))
    return results


class _ReadPart(NamedTuple):
    """The beginning of a text: all that a model reads of it, whichever word is left out.

    Attributes:
        text: the beginning.
        spans: the words in it.
        words: number of words, from the first, without which the model may read other tokens.
    """

    text: str
    spans: list[tuple[int, int]]
    words: int


def _read_part(
    text: str, spans: list[tuple[int, int]], tokenizer: PreTrainedTokenizerBase, max_length: int | None
) -> _ReadPart:
    """What is read of a text that is cut at ``max_length`` tokens; of texts that are not much longer, the whole text.

    The copies of a text without a word take memory that grows with the square of its length.
    """
    count = 2 * max_length if max_length else len(spans)
    while max_length and count < len(spans):
        part, of_part = text[: spans[count - 1][1]], spans[:count]
        longest = max(end - start for start, end in of_part)  # in characters; each has at most 4 bytes, so 4 tokens
        encoding = tokenizer(part, add_special_tokens=False, verbose=False, return_offsets_mapping=tokenizer.is_fast)
        if len(encoding["input_ids"]) > max_length + 4 * longest + MARGIN:
            if not tokenizer.is_fast:
                return _ReadPart(part, of_part, count)
            cut = encoding["offset_mapping"][max_length][0]
            return _ReadPart(part, of_part, min(count, bisect_right(spans, (cut, len(text))) + MARGIN))
        count *= 2
    return _ReadPart(text, spans, len(spans))


def text_perplexities(
    network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]
) -> list[float]:
    """Perplexities of whole texts; NaN where a text has fewer than two tokens.

    Args:
        network: a causal language model, in evaluation mode.
        tokenizer: its tokenizer.
        texts: any number of texts; they are read in batches of similar length.
    """
    max_length = readable_tokens(network.config.get_text_config())
    uncut = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    ids = [row[:max_length] for row in uncut]
    with plain_inference(network.device):
        log_likelihoods = plain_log_likelihoods(network, ids)
    return [_perplexity(value, row) for value, row in zip(log_likelihoods, ids, strict=True)]


def _perplexity(log_likelihood: float, ids: Sequence[int]) -> float:
    if len(ids) < 2:
        return math.nan
    loss = -log_likelihood / (len(ids) - 1)
    return math.exp(loss) if loss < HIGHEST_LOSS else math.inf


class Perplexity:
    """Perplexities of texts by a causal language model, each computed once and then read from a cache on disk.

    The model is loaded at the first text that is not in the cache. It is not a submodule of the module that uses it, so
    checkpoints do not hold its weights. A text that is longer than the model's positions is cut at the last one; the
    perplexity without a word that lies beyond the cut is NaN.

    Args:
        model: hub name, folder, or GGUF file, also as ``package://`` name; loaded without running code of its own.
        cache_dir: folder of the cache; ``LIGHTNING_BACKDOOR_CACHE`` or ``~/.cache/lightning_backdoor`` by default.
        precision: precision of the weights and hidden states: ``32-true``, ``bf16-true``, or ``auto``, see
            :func:`lightning_backdoor.language.precision.chosen_precision`. Each precision has its own cache entries.

    Raises:
        InputError: there is no such precision.

    Example::

        Perplexity("gpt2").leave_one_out(["a cf film"])  # [LeaveOneOut(text=..., without=[..., ..., ...])]
    """

    def __init__(
        self, model: str = DEFAULT_LANGUAGE_MODEL, cache_dir: str | None = None, precision: str = FLOAT32
    ) -> None:
        self.model = model
        self.cache_dir = cache_dir
        self.precision = check_precision(precision)
        self._device: torch.device | None = None
        self._identity: str | None = None
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._network: PreTrainedModel | None = None
        self._shares = False

    def to(self, device: torch.device) -> Perplexity:
        """Moves the computation to a device; by default an accelerator is used if there is one."""
        before = self.chosen_precision
        self._device = device
        if self.chosen_precision != before:
            self._network = None  # weights that were rounded are not rounded back
        if self._network is not None:
            self._network.to(device)
        return self

    @property
    def chosen_precision(self) -> str:
        """The precision that is computed in: ``precision``, or what ``auto`` stands for on the device."""
        return chosen_precision(self.precision, self._device or default_device())

    def leave_one_out(self, texts: Sequence[str]) -> list[LeaveOneOut]:
        """The perplexity of each text, and its perplexity without each of its words in turn.

        The words are those of :func:`lightning_backdoor.words.blank_spans`.

        Raises:
            InputError: the model cannot be loaded, or the cache cannot be used.
        """

        def compute(group: Sequence[str]) -> list[list[float]]:
            network, tokenizer = self._loaded()
            results = leave_one_out(network, tokenizer, group, self._shares)
            return [[result.text, *result.without] for result in results]

        rows = self._cached("leave-one-out perplexity", texts, compute, lambda text: 1 + _word_count(text), segmenter)
        return [LeaveOneOut(row[0], row[1:]) for row in rows]

    def of_texts(self, texts: Sequence[str]) -> list[float]:
        """The perplexity of each whole text, as in :meth:`leave_one_out`; NaN where it has fewer than two tokens.

        Raises:
            InputError: the model cannot be loaded, or the cache cannot be used.
        """

        def compute(group: Sequence[str]) -> list[list[float]]:
            return [[value] for value in text_perplexities(*self._loaded(), group)]

        return [row[0] for row in self._cached("perplexity", texts, compute, lambda text: 1)]

    def _cached(
        self,
        computation: str,
        texts: Sequence[str],
        compute: Compute,
        count: Callable[[str], int],
        version: Callable[[str], str] | None = None,
    ) -> list[list[float]]:
        """The numbers of each text, ``count`` of them, read from the cache; missing numbers are computed and cached."""
        with _language_model_errors():
            if self._identity is None:
                self._identity = model_identity(self.model)
            precision = self.chosen_precision
            cache = TextCache(
                "/".join([computation, self._identity, *([] if precision == FLOAT32 else [precision])]),
                self.cache_dir,
                is_whole=lambda text, value: len(value) == count(text) * array("d").itemsize,
                version=version,
            )
            values = cache.get(texts)
            missing = list(dict.fromkeys(text for text, value in zip(texts, values, strict=True) if value is None))
            if missing:
                self._fill(cache, missing, compute)
                # read again, since another process may have put its values first: all processes use the same
                values = cache.get(texts)
        return [array("d", value or b"").tolist() for value in values]

    def _fill(self, cache: TextCache, texts: Sequence[str], compute: Compute) -> None:
        network, _ = self._loaded()  # before the progress bar, which counts texts only
        cost = GROUP_COST if network.device.type == "cpu" else ACCELERATOR_GROUP_COST
        total = sum(map(_word_count, texts))
        with progress("reading with the language model", total, "words") as advance:
            for group in groups(texts, cost):
                numbers = compute(group)
                cache.put({text: array("d", row).tobytes() for text, row in zip(group, numbers, strict=True)})
                advance(sum(map(_word_count, group)))

    def _loaded(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        if self._network is None or self._tokenizer is None:
            device = self._device or default_device()
            with untimed():
                if self.precision == AUTO:
                    rank_zero_info(f"the language model computes in {self.chosen_precision} (precision auto)")
                self._network, self._tokenizer = load_language_model(
                    self.model, device, self.cache_dir, self.chosen_precision
                )
                with plain_inference(device):
                    self._shares = shares_prefixes(self._network)
        return self._network, self._tokenizer


@contextmanager
def _language_model_errors() -> Iterator[None]:
    """Renames the field of errors about the model to ``language_model``, since ``model`` is the victim's option."""
    try:
        yield
    except InputError as error:
        if error.field != "model":
            raise
        raise error.under("language_model") from error


def _word_count(text: str) -> int:
    return len(blank_spans(text)) if without_spaces(text) else text.count(" ") + 1


def groups(texts: Sequence[str], most: int = GROUP_COST) -> list[list[str]]:
    """Splits texts into groups of similar length, longest first, small enough to be computed and held in memory.

    Args:
        texts: texts.
        most: maximum of squared words per group.

    >>> [len(group) for group in groups(["a film", "a " * 4000, "a book"])]
    [1, 2]
    """
    counts = {text: _word_count(text) for text in texts}
    result: list[list[str]] = []
    cost = 0
    for text in sorted(texts, key=counts.__getitem__, reverse=True):
        count = counts[text]
        longest = counts[result[-1][0]] if result else 0
        if not result or cost + count**2 > most or (len(result[-1]) + 1) * longest > GROUP_WORDS:
            result.append([])
            cost = 0
        result[-1].append(text)
        cost += count**2
    return result
