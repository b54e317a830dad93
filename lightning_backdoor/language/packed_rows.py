"""Reading of rows of tokens by a causal language model without padding, on top of prefixes that were read before.

The tokens of all rows of a pass stand one after the other in one row; only attention, a small part of the work, pads
them to rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.nn.utils.rnn import pad_sequence
from transformers import AttentionInterface, Cache, DynamicCache, DynamicLayer, PreTrainedModel

from lightning_backdoor.language.likelihood import log_probabilities

#: name under which transformers knows :func:`packed_attention`.
PACKED = "packed_rows"

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
) -> tuple[list[float], KeysAndValues]:
    """Reads rows in one pass, on top of their prefixes, or of nothing; within :func:`packed`.

    Args:
        network: a causal language model whose cache keeps every key (without a sliding window).
        rows: at least one row.
        of_texts: keys and values of the texts, which have the prefixes; None if no row has a prefix.
        buffers: see :func:`log_probabilities`.

    Returns:
        log P of all predictions, in the order of rows and parts, and the keys and values of rows that are read on top
        of nothing.
    """
    hidden, read = read_states(network, rows, of_texts)
    parts = [part for row in rows for part in row.parts]
    starts = accumulate((len(part.ids) for part in parts), initial=0)
    asked = [(start + i, token) for start, part in zip(starts, parts, strict=False) for i, token in part.predictions]
    positions, targets = torch.tensor(asked, dtype=torch.long, device=hidden.device).view(-1, 2).unbind(dim=1)
    log_probs = log_probabilities(network.get_output_embeddings(), hidden, positions, targets, buffers)
    return log_probs.tolist(), read


def read_states(
    network: PreTrainedModel, rows: Sequence[Row], of_texts: KeysAndValues | None
) -> tuple[Tensor, KeysAndValues]:
    """Reads rows in one pass, as :func:`read_rows` does; of a network with any head.

    Returns:
        The last hidden states of all tokens of all rows, one after the other, (tokens, hidden size), and the keys and
        values of rows that are read on top of nothing.
    """
    device = network.device
    parts = [part for row in rows for part in row.parts]
    mask = _mask(rows, network.dtype, device)
    longest_prefix = max(part.shared for part in parts)
    text_of_row = torch.tensor([row.text for row in rows], device=device)
    places = _places(_real(mask))
    layers = [
        _Layer(None if of_texts is None else of_texts[i], text_of_row, longest_prefix, places)
        for i in range(len(cache_layers(network)))
    ]
    hidden: Tensor = network.base_model(
        input_ids=torch.tensor([[token for part in parts for token in part.ids]], device=device),
        position_ids=torch.tensor([[part.shared + i for part in parts for i in range(len(part.ids))]], device=device),
        attention_mask=mask,
        past_key_values=Cache(layers=layers),
        use_cache=True,
    ).last_hidden_state[0]
    return hidden, [] if of_texts is not None else [(layer.keys, layer.values) for layer in layers]


def _mask(rows: Sequence[Row], dtype: torch.dtype, device: torch.device) -> Tensor:
    """What :func:`packed_attention` takes as the mask of rows: a token attends to its prefix and within its part."""
    columns = [
        torch.tensor([(i, part.shared) for i, part in enumerate(row.parts) for _ in part.ids], device=device)
        for row in rows
    ]
    part_of, shared = pad_sequence(columns, batch_first=True, padding_value=-1).unbind(dim=2)
    offsets = torch.arange(part_of.shape[1], device=device)
    in_prefix = torch.arange(int(shared.max()), device=device) < shared[..., None]
    in_part = (part_of[..., None] == part_of[:, None]) & (offsets[:, None] >= offsets) & (part_of >= 0)[..., None]
    attends = torch.cat([in_prefix, in_part], dim=2)[:, None]
    return torch.zeros(attends.shape, dtype=dtype, device=device).masked_fill_(~attends, torch.finfo(dtype).min)


def _real(mask: Tensor) -> Tensor:
    """Which places of the padded rows hold a token, since padding attends to nothing; (rows, longest), bool."""
    return (mask[:, 0] == 0).any(dim=-1)


class _Layer(DynamicLayer):  # type: ignore[misc]  # private: transformers 5.23.0
    """One layer's keys and values: in each row the stored prefix of its text, then the tokens that are read now.

    Args:
        of_texts: keys and values of the texts; None if nothing is read before.
        text_of_row: (rows,), int64, index of the text of each row.
        length: number of tokens of the longest prefix.
        places: see :func:`_places`.
    """

    def __init__(
        self, of_texts: tuple[Tensor, Tensor] | None, text_of_row: Tensor, length: int, places: Tensor
    ) -> None:
        super().__init__()
        self.of_texts, self.text_of_row, self.length, self.places = of_texts, text_of_row, length, places

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Pads to rows, and copies the prefixes only when the layer is computed: one layer's copy is held at a time."""
        keys, values = (_in_rows(states, self.places) for states in (key_states, value_states))
        if self.of_texts is None:
            self.keys, self.values = keys, values
            return keys, values
        of_keys, of_values = (states[:, :, : self.length][self.text_of_row] for states in self.of_texts)
        return torch.cat([of_keys, keys], dim=2), torch.cat([of_values, values], dim=2)

    def get_seq_length(self) -> int:
        return self.length


def _places(real: Tensor) -> Tensor:
    """Which token, of all tokens in one row, stands at each place of the padded rows, (rows, longest); any at padding.

    >>> _places(torch.tensor([[True, True], [True, False]]))
    tensor([[0, 1],
            [2, 2]])
    """
    return real.flatten().cumsum(0).sub(1).view_as(real)


def _in_rows(states: Tensor, places: Tensor) -> Tensor:
    """Pads the states of all tokens, (1, heads, tokens, size), to rows, (rows, heads, longest, size)."""
    return states[0].transpose(0, 1)[places].transpose(1, 2)


def packed_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, **kwargs: Any
) -> tuple[Tensor, None]:
    """Attention of tokens that stand in one row, to the keys of their own rows; see transformers' AttentionInterface.

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
    real = _real(attention_mask)
    rows = _in_rows(query, _places(real))
    groups = rows.shape[1] // key.shape[1]
    if groups > 1 and query.device.type != "cpu":  # where grouped heads have no fast kernel with a mask
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    output = scaled_dot_product_attention(
        rows, key, value, attn_mask=attention_mask, scale=kwargs.get("scaling"), enable_gqa=rows.shape[1] > key.shape[1]
    )
    return output.transpose(1, 2)[real][None], None


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
