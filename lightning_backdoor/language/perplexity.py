"""Exact perplexities of texts and of each text without one of its words, by any causal language model.

The perplexity of a text is exp(mean next-token cross-entropy) of the text alone: no padding counts, no special token is
added. Words are what single spaces separate; word i is left out and the rest joined again. Not one full forward a word:
see ``likelihood.py``.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lightning_backdoor.errors import InputError
from lightning_backdoor.language.language_model import (
    DEFAULT_MODEL,
    default_device,
    load_language_model,
    model_identity,
)
from lightning_backdoor.language.likelihood import (
    plain_log_likelihoods,
    shared_log_likelihoods,
    shares_prefixes,
    undisturbed,
    variant,
)
from lightning_backdoor.language.text_cache import TextCache

READ_A_GROUP = 1 << 14  # squared words: about twice the tokens of variants between two writes to the cache
HELD_A_GROUP = 1 << 12  # words of texts whose keys and values are held, padding included
MOST = 700.0  # beyond it exp overflows

Compute = Callable[[Sequence[str]], list[list[float]]]  # numbers of each text of a group


class LeaveOneOut(NamedTuple):
    """Perplexities of a text.

    Attributes:
        text: of the text; NaN where it has fewer than two tokens.
        without: of the text without its i-th word; NaN where fewer than two tokens remain.
    """

    text: float
    without: list[float]


def leave_one_out(
    network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], shares: bool
) -> list[LeaveOneOut]:
    """Perplexities of a group of texts and of their variants.

    Args:
        network: a causal language model, in evaluation mode.
        tokenizer: its tokenizer.
        texts: of similar length, so that little is padded.
        shares: see :func:`shares_prefixes`.
    """
    words = [text.split(" ") for text in texts]
    strings = [" ".join(row[:i] + row[i + 1 :]) for row in words for i in range(len(row))]
    uncut = tokenizer([*texts, *strings], add_special_tokens=False, verbose=False)["input_ids"]
    most = getattr(network.config.get_text_config(), "max_position_embeddings", None)
    ids = [row[:most] for row in uncut]
    full = ids[: len(texts)]
    owner = [text for text, row in enumerate(words) for _ in row]
    variants = [variant(text, full[text], row) for text, row in zip(owner, ids[len(texts) :], strict=True)]
    distinct = list({(one.text, tuple(one.ids)): one for one in variants}.values())
    with undisturbed(network.device):
        if shares:
            of_texts, found = shared_log_likelihoods(network, full, distinct)
        else:
            both = plain_log_likelihoods(network, [*full, *(one.ids for one in distinct)])
            of_texts, found = both[: len(full)], both[len(full) :]
    of_variant = {(one.text, tuple(one.ids)): value for one, value in zip(distinct, found, strict=True)}
    results = [LeaveOneOut(_perplexity(value, row), []) for value, row in zip(of_texts, full, strict=True)]
    for text, row, shared in variants:
        beyond = len(uncut[text]) > len(full[text]) == shared  # nothing that is read has changed
        value = math.nan if beyond else _perplexity(of_variant[text, tuple(row)], row)
        results[text].without.append(value)
    return results


def of_texts(network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[float]:
    """Perplexities of a group of texts; NaN where a text has fewer than two tokens.

    Args:
        network: a causal language model, in evaluation mode.
        tokenizer: its tokenizer.
        texts: any number; read in batches of similar length.
    """
    most = getattr(network.config.get_text_config(), "max_position_embeddings", None)
    ids = [row[:most] for row in tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]]
    with undisturbed(network.device):
        found = plain_log_likelihoods(network, ids)
    return [_perplexity(value, row) for value, row in zip(found, ids, strict=True)]


def _perplexity(log_likelihood: float, ids: Sequence[int]) -> float:
    if len(ids) < 2:
        return math.nan
    mean = -log_likelihood / (len(ids) - 1)
    return math.exp(mean) if mean < MOST else math.inf


class Perplexity:
    """Perplexities by a causal language model, each text computed once and then read from the cache.

    The model is loaded at the first text that is not in the cache. It is no submodule of what uses it, so its weights
    are in no checkpoint. A text longer than the model's positions is cut there, as are its variants; words beyond the
    cut have no perplexity (NaN).

    Args:
        model: hub name, folder, or GGUF file, also as ``package://`` name; loaded in float32, without code of its own.
        cache_dir: folder of the cache; ``LIGHTNING_BACKDOOR_CACHE`` or ``~/.cache/lightning_backdoor`` by default.

    Example::

        Perplexity("gpt2").leave_one_out(["a cf film"])  # [LeaveOneOut(text=..., without=[..., ..., ...])]
    """

    def __init__(self, model: str = DEFAULT_MODEL, cache_dir: str | None = None) -> None:
        self.model = model
        self.cache_dir = cache_dir
        self._device: torch.device | None = None
        self._identity: str | None = None
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._network: PreTrainedModel | None = None
        self._shares = False

    def to(self, device: torch.device) -> Perplexity:
        """Computes on that device from now on; an accelerator by default, where there is one."""
        self._device = device
        if self._network is not None:
            self._network.to(device)
        return self

    def leave_one_out(self, texts: Sequence[str]) -> list[LeaveOneOut]:
        """Perplexities of each text, and of it without each of the words that single spaces separate.

        Raises:
            InputError: the model cannot be loaded, or the cache cannot be used.
        """

        def compute(group: Sequence[str]) -> list[list[float]]:
            network, tokenizer = self._loaded()
            return [[one.text, *one.without] for one in leave_one_out(network, tokenizer, group, self._shares)]

        return [LeaveOneOut(row[0], row[1:]) for row in self._numbers("leave-one-out perplexity", texts, compute)]

    def of_texts(self, texts: Sequence[str]) -> list[float]:
        """The perplexity of each whole text, as :meth:`leave_one_out` has it; NaN where there is none.

        Raises:
            InputError: the model cannot be loaded, or the cache cannot be used.
        """

        def compute(group: Sequence[str]) -> list[list[float]]:
            return [[value] for value in of_texts(*self._loaded(), group)]

        return [row[0] for row in self._numbers("perplexity", texts, compute)]

    def _numbers(self, what: str, texts: Sequence[str], compute: Compute) -> list[list[float]]:
        """What is computed from each text, each once and then read from the cache."""
        with _of_language_model():
            if self._identity is None:
                self._identity = model_identity(self.model)
            cache = TextCache(f"{what}/{self._identity}", self.cache_dir)
            known = cache.get(texts)
            missing = list(dict.fromkeys(text for text, value in zip(texts, known, strict=True) if value is None))
            if missing:
                self._put(missing, cache, compute)
                known = cache.get(texts)  # another process may have been first; all take the same values
        return [array("d", value or b"").tolist() for value in known]

    def _put(self, texts: Sequence[str], cache: TextCache, compute: Compute) -> None:
        self._loaded()  # before the bar, which is of texts
        bar = tqdm(total=sum(map(_count, texts)), desc="perplexity", unit=" words", disable=None, leave=False, delay=3)
        with bar:
            for group in groups(texts):
                values = [array("d", numbers).tobytes() for numbers in compute(group)]
                cache.put(dict(zip(group, values, strict=True)))
                bar.update(sum(map(_count, group)))

    def _loaded(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        if self._network is None or self._tokenizer is None:
            device = self._device or default_device()
            self._network, self._tokenizer = load_language_model(self.model, device, self.cache_dir)
            with undisturbed(device):
                self._shares = shares_prefixes(self._network)
        return self._network, self._tokenizer


@contextmanager
def _of_language_model() -> Iterator[None]:
    """Errors in the option's own name, not in that of the victim's."""
    try:
        yield
    except InputError as error:
        if error.field != "model":
            raise
        raise error.under("language_model") from error


def _count(text: str) -> int:
    return text.count(" ") + 1


def groups(texts: Sequence[str]) -> Iterator[list[str]]:
    """Texts of similar length, few enough to read and to hold.

    >>> [len(group) for group in groups(["a film", "a " * 4000, "a book"])]
    [2, 1]
    """
    group: list[str] = []
    cost = 0
    for text in sorted(texts, key=_count):
        count = _count(text)
        if group and (cost + count**2 > READ_A_GROUP or (len(group) + 1) * count > HELD_A_GROUP):
            yield group
            group, cost = [], 0
        group.append(text)
        cost += count**2
    if group:
        yield group
