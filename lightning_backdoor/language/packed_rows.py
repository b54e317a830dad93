"""Reading of rows of tokens by a causal language model without padding, on top of prefixes that were read before.

The tokens of all rows of a pass stand one after the other in one row; only attention, a small part of the work, pads
them to rows.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, Cache, DynamicCache, DynamicLayer, PreTrainedModel

from lightning_backdoor.language.likelihood import log_probabilities, on_device

#: name under which transformers knows :func:`packed_attention`.
PACKED = "packed_rows"
#: keys per row are padded to a multiple of it, with which attention on a processor takes about two thirds of the time.
KEYS = 16

#: keys and values of each layer, both (rows, heads, tokens, size).
KeysAndValues = list[tuple[Tensor, Tensor]]


class Part(NamedTuple):
    """Tokens that are read on top of a prefix.

    Attributes:
        shared: number of tokens of the prefix.
        ids: the tokens, at least one.
        predictions: positions among these tokens, in ascending order, each with a token whose probability is asked for
            from the state there.
    """

    shared: int
    ids: list[int]
    predictions: list[tuple[int, int]]


class Row(NamedTuple):
    """Parts that are read on top of prefixes of one text, and do not attend to each other.

    Attributes:
        text: index of the text.
        parts: at least one part.
    """

    text: int
    parts: list[Part]

    def length(self) -> int:
        """The number of tokens of all parts."""
        return sum(len(part.ids) for part in self.parts)


def read_rows(
    network: PreTrainedModel, rows: Sequence[Row], of_texts: KeysAndValues | None, buffers: list[Tensor]
) -> tuple[Tensor, KeysAndValues]:
    """Reads rows in one pass, on top of their prefixes, or of nothing; within :func:`packed`.

    An accelerator is given all work of the pass without being waited for.

    Args:
        network: a causal language model whose cache keeps every key (without a sliding window).
        rows: at least one row.
        of_texts: keys and values of the texts, which have the prefixes, padded by at least ``KEYS``; None if no row
            has a prefix.
        buffers: see :func:`log_probabilities`.

    Returns:
        log P of all predictions, (predictions,), float32, in the order of rows and parts, and the keys and values of
        rows that are read on top of nothing, padded to a multiple of ``KEYS`` tokens.
    """
    hidden, read = read_states(network, rows, of_texts)
    parts = [part for row in rows for part in row.parts]
    starts = accumulate((len(part.ids) for part in parts), initial=0)
    asked = [(start + i, token) for start, part in zip(starts, parts, strict=False) for i, token in part.predictions]
    positions, targets = torch.tensor(asked, dtype=torch.long).view(-1, 2).unbind(dim=1)
    return log_probabilities(network.get_output_embeddings(), hidden, positions, targets, buffers), read


def read_states(
    network: PreTrainedModel, rows: Sequence[Row], of_texts: KeysAndValues | None
) -> tuple[Tensor, KeysAndValues]:
    """Reads rows in one pass, as :func:`read_rows` does; of a network with any head.

    Returns:
        The last hidden states of all tokens of all rows, one after the other, (tokens, hidden size), and the keys and
        values of rows that are read on top of nothing, padded to a multiple of ``KEYS`` tokens.
    """
    device = network.device
    parts = [part for row in rows for part in row.parts]
    places = _places(rows, multiple=KEYS if of_texts is None else 1)
    prefix = max(part.shared for part in parts)
    prefix += -(prefix + places.tokens.shape[1]) % KEYS
    text_of_row = on_device(torch.tensor([row.text for row in rows]), device)
    _reading.tokens, _reading.places = (on_device(index, device) for index in (places.tokens, places.places))
    layers = [
        _Layer(None if of_texts is None else of_texts[i], text_of_row, prefix)
        for i in range(len(cache_layers(network)))
    ]
    hidden: Tensor = network.base_model(
        input_ids=on_device(torch.tensor([[token for part in parts for token in part.ids]]), device),
        position_ids=on_device(places.positions[None], device),
        attention_mask=_mask(places, prefix, network.dtype, device),
        past_key_values=Cache(layers=layers),
        use_cache=True,
    ).last_hidden_state[0]
    return hidden, [] if of_texts is not None else [(layer.keys, layer.values) for layer in layers]


class _Places(NamedTuple):
    """Where the tokens of a pass stand in rows that are padded to the longest; all on the processor.

    Attributes:
        tokens: (rows, longest), int64, the token at each place; any at padding.
        places: (tokens,), int64, the place of each token, counted through all rows.
        part_of: (rows, longest), int64, the part at each place; -1 at padding.
        shared: (rows, longest), int64, the length of that part's prefix; 0 at padding.
        positions: (tokens,), int64, the position of each token in its variant.
    """

    tokens: Tensor
    places: Tensor
    part_of: Tensor
    shared: Tensor
    positions: Tensor


def _places(rows: Sequence[Row], multiple: int) -> _Places:
    """The places of the tokens of rows that are padded to a multiple of a number of places.

    >>> rows = [Row(0, [Part(3, [5, 6], [])]), Row(1, [Part(1, [7], [])])]
    >>> _places(rows, multiple=4).places
    tensor([0, 1, 4])
    """
    of_parts = [(row, len(part.ids), part.shared) for row, content in enumerate(rows) for part in content.parts]
    row_of_part, lengths, shared = torch.tensor(of_parts).unbind(dim=1)
    part = torch.repeat_interleave(lengths)
    token = torch.arange(len(part))
    of_rows = torch.tensor([row.length() for row in rows])
    longest = -(-int(of_rows.max()) // multiple) * multiple
    places = row_of_part[part] * longest + token - (of_rows.cumsum(0) - of_rows)[row_of_part[part]]

    def padded(values: Tensor, padding: int) -> Tensor:
        return values.new_full((len(rows) * longest,), padding).index_copy_(0, places, values).view(len(rows), longest)

    positions = shared[part] + token - (lengths.cumsum(0) - lengths)[part]
    return _Places(padded(token, 0), places, padded(part, -1), padded(shared[part], 0), positions)


def _mask(places: _Places, prefix: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """What :func:`packed_attention` takes as the mask of rows: a token attends to its prefix and within its part."""
    part_of, shared = on_device(places.part_of, device), on_device(places.shared, device)
    offsets = torch.arange(part_of.shape[1], device=device)
    in_prefix = torch.arange(prefix, device=device) < shared[..., None]
    in_part = (part_of[..., None] == part_of[:, None]) & (offsets[:, None] >= offsets) & (part_of >= 0)[..., None]
    attends = torch.cat([in_prefix, in_part], dim=2)[:, None]
    return torch.zeros(attends.shape, dtype=dtype, device=device).masked_fill_(~attends, torch.finfo(dtype).min)


class _Reading(threading.local):
    """The places of the pass that a thread reads, on the network's device; see :class:`_Places`."""

    tokens: Tensor
    places: Tensor


_reading = _Reading()


class _Layer(DynamicLayer):  # type: ignore[misc]  # private: transformers 5.23.0
    """One layer's keys and values: in each row the stored prefix of its text, then the tokens that are read now.

    Args:
        of_texts: keys and values of the texts; None if nothing is read before.
        text_of_row: (rows,), int64, index of the text of each row.
        length: number of tokens of the longest prefix, and its padding.
    """

    def __init__(self, of_texts: tuple[Tensor, Tensor] | None, text_of_row: Tensor, length: int) -> None:
        super().__init__()
        self.of_texts, self.text_of_row, self.length = of_texts, text_of_row, length

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Pads to rows, and copies the prefixes only when the layer is computed: one layer's copy is held at a time."""
        keys, values = _in_rows(key_states), _in_rows(value_states)
        if self.of_texts is None:
            self.keys, self.values = keys, values
            return keys, values
        of_keys, of_values = (states[:, :, : self.length][self.text_of_row] for states in self.of_texts)
        return torch.cat([of_keys, keys], dim=2), torch.cat([of_values, values], dim=2)

    def get_seq_length(self) -> int:
        return self.length


def _in_rows(states: Tensor) -> Tensor:
    """Pads the states of all tokens, (1, heads, tokens, size), to rows, (rows, heads, longest, size)."""
    _, heads, tokens, size = states.shape
    # whole tokens are copied at once: several times as fast as by an index into three dimensions
    rows = states.transpose(1, 2).reshape(tokens, heads * size).index_select(0, _reading.tokens.flatten())
    return rows.view(*_reading.tokens.shape, heads, size).transpose(1, 2)


def packed_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, **kwargs: Any
) -> tuple[Tensor, None]:
    """Attention of tokens that stand in one row, to the keys of their own rows; see transformers' AttentionInterface.

    Where each token stands in its row is known from the pass that :func:`read_rows` reads in this thread.

    Args:
        module: the attention layer.
        query: (1, heads, tokens, size).
        key: (rows, key heads, keys, size).
        value: like ``key``.
        attention_mask: (rows, 1, longest, keys), 0 where a token attends and the lowest number elsewhere; padding
            attends to nothing.
        **kwargs: ``scaling`` of the scores, and what does not matter in evaluation.

    Returns:
        (1, tokens, heads, size), and None.
    """
    rows = _in_rows(query)
    groups = rows.shape[1] // key.shape[1]
    if groups > 1 and query.device.type != "cpu":  # where grouped heads have no fast kernel with a mask
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    output = scaled_dot_product_attention(
        rows, key, value, attn_mask=attention_mask, scale=kwargs.get("scaling"), enable_gqa=rows.shape[1] > key.shape[1]
    )
    _, heads, _, size = rows.shape
    of_tokens = output.transpose(1, 2).reshape(-1, heads * size).index_select(0, _reading.places)
    return of_tokens.view(1, -1, heads, size), None


AttentionInterface.register(PACKED, packed_attention)


@contextmanager
def packed(network: PreTrainedModel) -> Iterator[None]:
    """Computes attention by :func:`packed_attention` within the block."""
    before = network.config._attn_implementation  # private: transformers 5.23.0
    network.set_attn_implementation(PACKED)
    try:
        yield
    finally:
        network.set_attn_implementation(before)


def cache_layers(network: PreTrainedModel) -> list[Any]:
    """An empty cache's layers for a model."""
    layers: list[Any] = DynamicCache(config=network.config).layers
    return layers
