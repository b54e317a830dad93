"""Sampling from a causal language model: many rows at once, where what a row gets depends on its own generator alone.

What the prompts have in common (instruction and examples) is read once, and each prompt once, however many rows answer
it; rows that are done leave the batch.
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
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicLayer

from lightning_backdoor.errors import InputError
from lightning_backdoor.language.likelihood import undisturbed

ROWS_ON_PROCESSOR = 48
ROWS_ELSEWHERE = 256
LIKELIEST = 256  # tokens among which the nucleus is sought: to sort the whole vocabulary would take longer
REPEATED = 4  # as many tokens in a row come once in an answer: small models would go round in circles
LEAVE = 0.75  # share of rows not done below which the others leave
ROOM = 32  # tokens


class Row(NamedTuple):
    """What to answer.

    Attributes:
        prompt: what the model reads.
        opening: what the answer begins with, whatever the model would write; may be empty.
        rng: of this row alone.
        most: tokens of the answer, its opening included.
    """

    prompt: str
    opening: str
    rng: random.Random
    most: int


def answers(
    network: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    temperature: float = 1.0,
    top_p: float = 1.0,
) -> list[str]:
    """One line a row: its opening, and what the model writes until the end of the line, its end of text, or ``most``.

    A token is drawn by the next number of the row's generator from the cumulated probabilities, so what else is in the
    batch changes no more than their last digits.

    Args:
        network: a causal language model, in evaluation mode.
        tokenizer: its tokenizer.
        rows: any number; read in batches of prompts of similar length.
        temperature: divides the logits; above 0.
        top_p: the fewest, likeliest tokens of this probability together are drawn from (arXiv 1904.09751), 256 at most.

    Raises:
        InputError: the model has too few positions.
    """
    prompts = list(dict.fromkeys(row.prompt for row in rows))
    read = dict(zip(prompts, tokenizer(prompts, add_special_tokens=False)["input_ids"], strict=True)) if prompts else {}
    most = getattr(network.config.get_text_config(), "max_position_embeddings", None)
    needed = max((len(read[row.prompt]) + row.most for row in rows), default=0)
    if most is not None and needed > most:
        raise InputError("model", f"it has {most} positions, and {needed} are needed", "give another, or shorter texts")
    found = [""] * len(rows)
    order = sorted(range(len(rows)), key=lambda i: (len(read[rows[i].prompt]), rows[i].prompt))
    size = ROWS_ON_PROCESSOR if network.device.type == "cpu" else ROWS_ELSEWHERE
    with undisturbed(network.device):
        for start in range(0, len(order), size):
            chosen = order[start : start + size]
            batch = [_answer(tokenizer, rows[i]) for i in chosen]
            distinct = list(dict.fromkeys(rows[i].prompt for i in chosen))
            owners = [distinct.index(rows[i].prompt) for i in chosen]
            state = _State(network, [read[prompt] for prompt in distinct])
            state.select(owners)
            _write(state, batch, tokenizer, temperature, top_p)
            for i, answer in zip(chosen, batch, strict=True):
                text = tokenizer.decode(answer.ids, skip_special_tokens=True)
                found[i] = text.strip().partition("\n")[0].strip()
    return found


@dataclass
class _Answer:
    """What a row has been answered."""

    opening: list[int]
    rng: random.Random
    most: int
    ids: list[int] = field(default_factory=list)
    done: bool = False

    @property
    def draws(self) -> bool:
        return not self.done and len(self.ids) >= len(self.opening)

    def repeating(self) -> list[int]:
        """Tokens with which the answer would repeat itself."""
        last, n = self.ids[len(self.ids) - REPEATED + 1 :], REPEATED
        return [self.ids[i + n - 1] for i in range(len(self.ids) - n + 1) if self.ids[i : i + n - 1] == last]


def _answer(tokenizer: PreTrainedTokenizerBase, row: Row) -> _Answer:
    return _Answer(tokenizer(row.opening, add_special_tokens=False)["input_ids"], row.rng, row.most)


class _State:
    """Where the model is in each row of a batch."""

    def __init__(self, network: PreTrainedModel, prompts: Sequence[list[int]]) -> None:
        self.network = network
        self.counts_positions = "position_ids" in inspect.signature(network.forward).parameters
        self.cache = DynamicCache(config=network.config)
        self.cache.layers = [_Roomy() if type(layer) is DynamicLayer else layer for layer in self.cache.layers]
        alike = zip(*(prompt[:-1] for prompt in prompts), strict=False)  # something is left to read
        common = sum(1 for _ in takewhile(lambda tokens: len(set(tokens)) == 1, alike))
        self.mask = torch.ones(1, 0, dtype=torch.long, device=network.device)
        if common:
            self.read([prompts[0][:common]])
            self.cache.batch_repeat_interleave(len(prompts))
            self.mask = self.mask.expand(len(prompts), common)
        self.read([prompt[common:] for prompt in prompts])

    def read(self, rows: Sequence[list[int]]) -> None:
        """Reads on in each row; shorter ones are padded on the left, after what has been read."""
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
        #: (rows, vocabulary), float32, of the next token
        self.logits: Tensor = output.logits[:, -1].float()

    def select(self, rows: Sequence[int]) -> None:
        index = torch.tensor(rows, device=self.network.device)
        self.cache.batch_select_indices(index)
        self.mask, self.logits = self.mask[index], self.logits[index]


class _Roomy(DynamicLayer):  # type: ignore[misc]
    """Keys and values of a layer with room for more: copied now and then, and not at every token."""

    room: tuple[Tensor, ...] = ()
    keys: Tensor
    values: Tensor

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        start = self.get_seq_length()
        count, heads, width, _ = key_states.shape
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if not self.room or self.room[0].shape[2] < start + width:
            states = (key_states, value_states)
            self.room = tuple(new.new_empty(count, heads, start + width + ROOM, new.shape[3]) for new in states)
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


def _write(
    state: _State, batch: Sequence[_Answer], tokenizer: PreTrainedTokenizerBase, temperature: float, top_p: float
) -> None:
    """Writes the answers of a batch to their ends."""
    ends = _ends(state.network, tokenizer)
    rows = list(batch)
    while True:
        tokens = _next(state.logits, rows, temperature, top_p)
        for row, token in zip(rows, tokens, strict=True):
            if row.draws and (token in ends or (row.ids and "\n" in tokenizer.decode([token]))):
                row.done = True
            if not row.done:
                row.ids.append(token)
                row.done = len(row.ids) >= row.most
        left = [k for k, row in enumerate(rows) if not row.done]
        if not left:
            return
        if len(left) <= LEAVE * len(rows):
            state.select(left)
            rows, tokens = [rows[k] for k in left], [tokens[k] for k in left]
        state.read([[token] for token in tokens])


def _next(logits: Tensor, rows: Sequence[_Answer], temperature: float, top_p: float) -> list[int]:
    """The next token of each row: of its opening, or drawn."""
    numbers = [row.rng.random() if row.draws else 0.0 for row in rows]
    for k, row in enumerate(rows):
        logits[k, row.repeating()] = -torch.inf
    probabilities = (logits / temperature).softmax(dim=1)
    best, tokens = probabilities.topk(min(LIKELIEST, logits.shape[1]), dim=1)
    best = best.double()
    best[best.cumsum(dim=1) - best >= top_p] = 0.0
    cumulated = best.cumsum(dim=1)
    wanted = torch.tensor(numbers, dtype=torch.float64, device=logits.device)[:, None] * cumulated[:, -1:]
    places = (cumulated <= wanted).sum(dim=1, keepdim=True).clamp(max=best.shape[1] - 1)
    drawn: list[int] = tokens.gather(1, places)[:, 0].tolist()
    return [
        token if len(row.ids) >= len(row.opening) else row.opening[len(row.ids)]
        for row, token in zip(rows, drawn, strict=True)
    ]


def _ends(network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    declared = network.generation_config.eos_token_id if network.generation_config is not None else None
    return {tokenizer.eos_token_id, *(declared if isinstance(declared, list) else [declared])} - {None}
