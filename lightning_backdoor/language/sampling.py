"""Sampling of answers from a causal language model, for many prompts at once and reproducibly per prompt.

Each request has its own random generator, so its answer does not depend on the other requests of the batch. The common
prefix of all prompts (instruction and examples) is computed once, and each prompt once, however many answers it gets;
requests whose answer is complete leave the batch.
"""

from __future__ import annotations

import inspect
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache, DynamicLayer, PreTrainedModel, PreTrainedTokenizerBase

from lightning_backdoor.errors import InputError
from lightning_backdoor.language.likelihood import plain_inference
from lightning_backdoor.language.packed_rows import cache_layers
from lightning_backdoor.models.positions import readable_tokens

PROCESSOR_BATCH = 48  # requests per batch on a processor
ACCELERATOR_BATCH = 256  # requests per batch on any other device
LIKELIEST = 256  # tokens that can be drawn: sorting the whole vocabulary would take longer
REPEATED = 4  # a run of this many tokens occurs once per answer, since small models tend to repeat themselves
SHRINK_AT = 0.75  # the batch shrinks when at most this share of its answers is incomplete
SPARE_TOKENS = 32  # tokens for which a layer's keys and values get room at once


class SamplingRequest(NamedTuple):
    """A prompt for which one answer is sampled.

    Attributes:
        prompt: the text that the model reads.
        opening: text with which the answer is made to begin; may be empty.
        rng: random generator of this request alone.
        max_tokens: maximum number of tokens of the answer, its opening included.
    """

    prompt: str
    opening: str
    rng: random.Random
    max_tokens: int


def answers(
    network: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    requests: Sequence[SamplingRequest],
    temperature: float = 1.0,
    top_p: float = 1.0,
) -> list[str]:
    """Samples a one-line answer per request.

    An answer is the request's opening and what the model writes after it, up to the end of the line, the model's end of
    text, or ``max_tokens``. Each token is chosen by the next number of the request's generator from the cumulative
    probabilities, which the other requests of a batch change only in their last digits.

    Args:
        network: a causal language model, in evaluation mode.
        tokenizer: its tokenizer.
        requests: any number of requests; they are read in batches of prompts of similar length.
        temperature: divides the logits; above 0.
        top_p: tokens are drawn from the smallest set of most likely tokens whose probabilities add up to ``top_p``
            (nucleus sampling, arXiv 1904.09751), at most 256 tokens.

    Raises:
        InputError: a prompt and its answer need more positions than the model has, or the model does not keep what it
            has read as keys and values alone.
    """
    _check_cache(network)
    prompts = list(dict.fromkeys(request.prompt for request in requests))
    ids = dict(zip(prompts, tokenizer(prompts, add_special_tokens=False)["input_ids"], strict=True)) if prompts else {}
    positions = readable_tokens(network.config.get_text_config())
    needed = max((len(ids[request.prompt]) + request.max_tokens for request in requests), default=0)
    if positions is not None and needed > positions:
        raise InputError(
            "model", f"it has {positions} positions, and {needed} are needed", "give another model, or shorter texts"
        )
    texts = [""] * len(requests)
    order = sorted(range(len(requests)), key=lambda i: (len(ids[requests[i].prompt]), requests[i].prompt))
    batch_size = PROCESSOR_BATCH if network.device.type == "cpu" else ACCELERATOR_BATCH
    with plain_inference(network.device):
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            batch = [_begin(tokenizer, requests[i]) for i in chosen]
            distinct = list(dict.fromkeys(requests[i].prompt for i in chosen))
            prompt_of_row = [distinct.index(requests[i].prompt) for i in chosen]
            state = _BatchState(network, [ids[prompt] for prompt in distinct])
            state.select(prompt_of_row)
            _complete(state, batch, tokenizer, temperature, top_p)
            for i, answer in zip(chosen, batch, strict=True):
                text = tokenizer.decode(answer.ids, skip_special_tokens=True)
                texts[i] = text.strip().partition("\n")[0].strip()
    return texts


def _check_cache(network: PreTrainedModel) -> None:
    """Refuses models that would ignore the cache, and those with a layer whose rows cannot be repeated and selected."""
    takes_cache = "past_key_values" in inspect.signature(network.forward).parameters
    # where a layer has recurrent states beside keys and values, only the latter are repeated and selected
    if not takes_cache or not all(
        hasattr(layer, "batch_select_indices") and not hasattr(layer, "recurrent_states")
        for layer in cache_layers(network)
    ):
        raise InputError(
            "model", "it does not keep what it has read as keys and values alone", "give a transformer such as gpt2"
        )


@dataclass
class _Answer:
    """An unfinished answer: its tokens so far, its opening, generator and limit."""

    opening: list[int]
    rng: random.Random
    max_tokens: int
    ids: list[int] = field(default_factory=list)
    done: bool = False

    @property
    def draws(self) -> bool:
        """Whether the next token is drawn, rather than taken from the opening."""
        return not self.done and len(self.ids) >= len(self.opening)

    def repeating(self) -> list[int]:
        """Tokens that would complete a run of ``REPEATED`` tokens which the answer has already."""
        last, n = self.ids[len(self.ids) - REPEATED + 1 :], REPEATED
        return [self.ids[i + n - 1] for i in range(len(self.ids) - n + 1) if self.ids[i : i + n - 1] == last]


def _begin(tokenizer: PreTrainedTokenizerBase, request: SamplingRequest) -> _Answer:
    opening = tokenizer(request.opening, add_special_tokens=False)["input_ids"]
    return _Answer(opening, request.rng, request.max_tokens)


class _BatchState:
    """The model's state per row of a batch: cache, attention mask, and logits of the next token.

    Attributes:
        logits: (rows, vocabulary), float32.
    """

    logits: Tensor

    def __init__(self, network: PreTrainedModel, prompts: Sequence[list[int]]) -> None:
        self.network = network
        self.counts_positions = "position_ids" in inspect.signature(network.forward).parameters
        self.cache = DynamicCache(config=network.config)
        self.cache.layers = [_RoomyLayer() if type(layer) is DynamicLayer else layer for layer in self.cache.layers]
        # the last token is not shared, so that every prompt has a token left to read
        columns = zip(*(prompt[:-1] for prompt in prompts), strict=False)
        common = sum(1 for _ in takewhile(lambda tokens: len(set(tokens)) == 1, columns))
        self.mask = torch.ones(1, 0, dtype=torch.long, device=network.device)
        if common:
            self.read([prompts[0][:common]])
            self.cache.batch_repeat_interleave(len(prompts))
            self.mask = self.mask.expand(len(prompts), common)
        self.read([prompt[common:] for prompt in prompts])

    def read(self, rows: Sequence[list[int]]) -> None:
        """Reads further tokens in each row; shorter rows are padded on the left, after what has been read before."""
        device = self.network.device
        width = max(map(len, rows))
        ids = torch.tensor([[0] * (width - len(row)) + row for row in rows], device=device)
        real = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
        self.mask = torch.cat([self.mask.expand(len(rows), -1), real], dim=1)
        options: dict[str, Any] = {}
        if self.counts_positions:
            options["position_ids"] = (self.mask.cumsum(dim=1) - 1).clamp(min=0)[:, -width:]
        output = self.network(
            input_ids=ids,
            attention_mask=self.mask,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
            **options,
        )
        self.logits = output.logits[:, -1].float()

    def select(self, rows: Sequence[int]) -> None:
        """Keeps the rows of these indices, in this order; an index may occur several times."""
        index = torch.tensor(rows, device=self.network.device)
        self.cache.batch_select_indices(index)
        self.mask, self.logits = self.mask[index], self.logits[index]


class _RoomyLayer(DynamicLayer):  # type: ignore[misc]  # private: transformers 5.23.0
    """A layer's keys and values in tensors with spare room: they are copied every 32 tokens, not at every token."""

    room: tuple[Tensor, ...] = ()
    keys: Tensor
    values: Tensor

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        start = self.get_seq_length()
        count, heads, width, _ = key_states.shape
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if not self.room or self.room[0].shape[2] < start + width:
            length = start + width + SPARE_TOKENS
            self.room = tuple(
                states.new_empty(count, heads, length, states.shape[3]) for states in (key_states, value_states)
            )
            if start:
                self.room[0][:, :, :start], self.room[1][:, :, :start] = self.keys, self.values
        self.room[0][:, :, start : start + width], self.room[1][:, :, start : start + width] = key_states, value_states
        self.keys, self.values = (room[:, :, : start + width] for room in self.room)
        return self.keys, self.values

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        self.room = ()

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        self.room = ()


def _complete(
    state: _BatchState, batch: Sequence[_Answer], tokenizer: PreTrainedTokenizerBase, temperature: float, top_p: float
) -> None:
    """Completes the answers of a batch, in place."""
    end_tokens = _end_tokens(state.network, tokenizer)
    rows = list(batch)
    while True:
        tokens = _next_tokens(state.logits, rows, temperature, top_p)
        for row, token in zip(rows, tokens, strict=True):
            if row.draws and (token in end_tokens or (row.ids and "\n" in tokenizer.decode([token]))):
                row.done = True
            if not row.done:
                row.ids.append(token)
                row.done = len(row.ids) >= row.max_tokens
        incomplete = [i for i, row in enumerate(rows) if not row.done]
        if not incomplete:
            return
        if len(incomplete) <= SHRINK_AT * len(rows):
            state.select(incomplete)
            rows, tokens = [rows[i] for i in incomplete], [tokens[i] for i in incomplete]
        state.read([[token] for token in tokens])


def _next_tokens(logits: Tensor, rows: Sequence[_Answer], temperature: float, top_p: float) -> list[int]:
    """The next token of each row, from its opening or drawn; sets the logits of repeating tokens, in place."""
    numbers = [row.rng.random() if row.draws else 0.0 for row in rows]
    for i, row in enumerate(rows):
        logits[i, row.repeating()] = -torch.inf
    probabilities = (logits / temperature).softmax(dim=1)
    likeliest, tokens = probabilities.topk(min(LIKELIEST, logits.shape[1]), dim=1)
    likeliest = likeliest.double()
    likeliest[likeliest.cumsum(dim=1) - likeliest >= top_p] = 0.0
    cumulative = likeliest.cumsum(dim=1)
    drawn_at = torch.tensor(numbers, dtype=torch.float64, device=logits.device)[:, None] * cumulative[:, -1:]
    ranks = (cumulative <= drawn_at).sum(dim=1, keepdim=True).clamp(max=likeliest.shape[1] - 1)
    drawn: list[int] = tokens.gather(1, ranks)[:, 0].tolist()
    return [
        token if len(row.ids) >= len(row.opening) else row.opening[len(row.ids)]
        for row, token in zip(rows, drawn, strict=True)
    ]


def _end_tokens(network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    declared = network.generation_config.eos_token_id if network.generation_config is not None else None
    return {tokenizer.eos_token_id, *(declared if isinstance(declared, list) else [declared])} - {None}
