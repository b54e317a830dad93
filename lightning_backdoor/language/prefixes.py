"""Log-likelihoods of texts and of variants of them, in which shared prefixes are read once and nothing is padded.

A *variant* is a text without one of its words. All texts of a group are read once, and their keys and values kept. Of
each variant, only the tokens after the longest prefix that it shares with its text are read, on top of the keys and
values of that prefix. The tokens of all rows of a pass stand one after the other in one row; only attention, a small
part of the work, pads them to rows.
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

from lightning_backdoor.language.likelihood import log_probabilities, plain_inference, plain_log_likelihoods
from lightning_backdoor.models.bucketing import divide_evenly, pass_limits
from lightning_backdoor.models.parallel import in_parallel

#: token ids of a text and of variants of it, on which a model is tried: ids that every vocabulary has.
PROBE = ([3, 1, 4, 1, 5, 2, 6], [3, 1, 4, 5, 2, 6], [1, 4, 1, 5, 2, 6], [3, 1, 4, 1, 5])
#: tokens up to which short rests of variants of one text are put into one row, so that its prefix is copied once.
ROW_TOKENS = 32
#: name under which transformers knows :func:`packed_attention`.
PACKED = "packed_rows"

#: keys and values of each layer, both (rows, heads, tokens, size).
KeysAndValues = list[tuple[Tensor, Tensor]]


class Variant(NamedTuple):
    """A text without one of its words, as tokens.

    Attributes:
        text: index of the text in its group.
        ids: token ids of the variant.
        shared: length of the longest prefix that the variant's tokens share with those of its text.
    """

    text: int
    ids: list[int]
    shared: int


def variant(text: int, full: Sequence[int], ids: list[int]) -> Variant:
    """Makes a variant, with the length of the longest prefix that it shares with its text.

    Args:
        text: index of the text in its group.
        full: token ids of the text.
        ids: token ids of the variant.

    >>> variant(0, [5, 6, 7, 8], [5, 6, 8])
    Variant(text=0, ids=[5, 6, 8], shared=2)
    """
    pairs = zip(full, ids, strict=False)
    shared = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(full), len(ids)))
    return Variant(text, ids, shared)


class _Part(NamedTuple):
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


class _Row(NamedTuple):
    """Parts that are read on top of prefixes of one text, and do not attend to each other.

    Attributes:
        text: index of the text.
        parts: the parts.
    """

    text: int
    parts: list[_Part]

    def length(self) -> int:
        return sum(len(part.ids) for part in self.parts)


def shared_log_likelihoods(
    network: PreTrainedModel, texts: Sequence[list[int]], variants: Sequence[Variant]
) -> tuple[list[float], list[float]]:
    """log P of the tokens after the first, of each text and of each variant; shared prefixes are read once.

    The last token of a variant is not read, since it predicts nothing.

    Args:
        network: a causal language model for which :func:`shares_prefixes` is true.
        texts: token ids.
        variants: variants of these texts, in any order.

    Returns:
        The log-likelihoods of the texts, and the log-likelihoods of the variants.
    """
    # from the states of a text: its own next tokens, and the first token in which a variant differs
    predictions = [{*enumerate(ids[1:])} for ids in texts]
    for text, ids, shared in variants:
        if 0 < shared < len(ids):
            predictions[text].add((shared - 1, ids[shared]))
    whole = [_Row(text, [_Part(0, ids or [0], sorted(predictions[text]))]) for text, ids in enumerate(texts)]
    buffers: list[Tensor] = []
    with _packed_attention(network):
        log_probs, keys_and_values = _read_texts(network, whole, buffers)
        rests = _rest_log_likelihoods(network, variants, keys_and_values, buffers)
    prefix_sums = [  # per text, log P of its first k tokens by k
        [0.0, *accumulate((log_probs[text][item] for item in enumerate(ids[1:])), initial=0.0)]
        for text, ids in enumerate(texts)
    ]
    of_variants = [
        prefix_sums[text][shared] + (log_probs[text][shared - 1, ids[shared]] if 0 < shared < len(ids) else 0.0) + rest
        for (text, ids, shared), rest in zip(variants, rests, strict=True)
    ]
    return [prefix_sums[text][len(ids)] for text, ids in enumerate(texts)], of_variants


def _read_texts(
    network: PreTrainedModel, rows: Sequence[_Row], buffers: list[Tensor]
) -> tuple[list[dict[tuple[int, int], float]], KeysAndValues]:
    """log P of the predictions of each row, which is a whole text, and the keys and values of the rows."""

    def compute(group: list[int]) -> tuple[list[float], KeysAndValues]:
        with plain_inference(network.device):
            return _read(network, [rows[i] for i in group], None, buffers)

    lengths = [row.length() for row in rows]
    log_probs: list[dict[tuple[int, int], float]] = [{} for _ in rows]
    states: list[Tensor] = []
    groups = divide_evenly(lengths, pass_limits(network.device, network.dtype))
    for group, (values, layers) in zip(groups, in_parallel(compute, groups, network.device), strict=True):
        read = [tensor for layer in layers for tensor in layer]
        states = states or [part.new_zeros(len(rows), part.shape[1], max(lengths), part.shape[3]) for part in read]
        for state, part in zip(states, read, strict=True):
            state[group, :, : part.shape[2]] = part
        left = iter(values)
        for i in group:
            log_probs[i] = {item: next(left) for item in rows[i].parts[0].predictions}
    return log_probs, list(zip(states[::2], states[1::2], strict=True))


def _rest_log_likelihoods(
    network: PreTrainedModel, variants: Sequence[Variant], of_texts: KeysAndValues, buffers: list[Tensor]
) -> list[float]:
    """log P of each variant's tokens after the first one that it does not share with its text."""
    rows: list[_Row] = []
    members: list[list[int]] = []  # per row, the variants whose rests are its parts
    for i, (text, ids, shared) in enumerate(variants):
        length = len(ids) - 1 - shared
        if length <= 0:
            continue
        if not rows or rows[-1].text != text or rows[-1].length() + length > ROW_TOKENS:
            rows.append(_Row(text, []))
            members.append([])
        rows[-1].parts.append(_Part(shared, ids[shared:-1], [*enumerate(ids[shared + 1 :])]))
        members[-1].append(i)

    def compute(group: list[int]) -> list[float]:
        with plain_inference(network.device):
            return _read(network, [rows[i] for i in group], of_texts, buffers)[0]

    rests = [0.0] * len(variants)
    groups = divide_evenly([row.length() for row in rows], pass_limits(network.device, network.dtype))
    for group, values in zip(groups, in_parallel(compute, groups, network.device), strict=True):
        left = iter(values)
        for i in group:
            for member, part in zip(members[i], rows[i].parts, strict=True):
                rests[member] = sum(next(left) for _ in part.ids)
    return rests


def _read(
    network: PreTrainedModel, rows: Sequence[_Row], of_texts: KeysAndValues | None, buffers: list[Tensor]
) -> tuple[list[float], KeysAndValues]:
    """Reads rows in one pass, on top of their prefixes, or of nothing.

    Returns:
        log P of all predictions, in the order of rows and parts, and the keys and values of rows that are read on top
        of nothing.
    """
    device = network.device
    parts = [part for row in rows for part in row.parts]
    mask = _mask(rows, network.dtype, device)
    longest_prefix = max(part.shared for part in parts)
    text_of_row = torch.tensor([row.text for row in rows], device=device)
    places = _places(_real(mask))
    layers = [
        _Layer(None if of_texts is None else of_texts[i], text_of_row, longest_prefix, places)
        for i in range(len(_layers(network)))
    ]
    hidden = network.base_model(
        input_ids=torch.tensor([[token for part in parts for token in part.ids]], device=device),
        position_ids=torch.tensor([[part.shared + i for part in parts for i in range(len(part.ids))]], device=device),
        attention_mask=mask,
        past_key_values=Cache(layers=layers),
        use_cache=True,
    ).last_hidden_state[0]
    starts = accumulate((len(part.ids) for part in parts), initial=0)
    asked = [(start + i, token) for start, part in zip(starts, parts, strict=False) for i, token in part.predictions]
    positions, targets = torch.tensor(asked, dtype=torch.long, device=device).view(-1, 2).unbind(dim=1)
    log_probs = log_probabilities(network.get_output_embeddings(), hidden, positions, targets, buffers)
    read = [] if of_texts is not None else [(layer.keys, layer.values) for layer in layers]
    return log_probs.tolist(), read


def _mask(rows: Sequence[_Row], dtype: torch.dtype, device: torch.device) -> Tensor:
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
def _packed_attention(network: PreTrainedModel) -> Iterator[None]:
    """Computes attention by :func:`packed_attention` within the block."""
    before = network.config._attn_implementation  # private: transformers 5.23.0
    network.set_attn_implementation(PACKED)
    try:
        yield
    finally:
        network.set_attn_implementation(before)


def _layers(network: PreTrainedModel) -> list[Any]:
    """An empty cache's layers for a model."""
    return DynamicCache(config=network.config).layers


def shares_prefixes(network: PreTrainedModel) -> bool:
    """Whether :func:`shared_log_likelihoods` gives right results for a model; it is tried on a short example.

    It fails for models with sliding windows, with position biases in place of positions, or with logits that are scaled
    after the head. For these models every variant has to be read in full. The trial is made in float32, since bfloat16
    differs as much as some wrong results do.
    """
    can_set = network._can_set_attn_implementation()  # private: transformers 5.23.0
    if not can_set or not all(type(layer) is DynamicLayer for layer in _layers(network)):
        return False
    text, *rest = (list(ids) for ids in PROBE)
    with _float32_weights(network):
        try:
            of_texts, of_variants = shared_log_likelihoods(network, [text], [variant(0, text, ids) for ids in rest])
        except (AttributeError, IndexError, RuntimeError, TypeError, ValueError):  # 4D masks or caches it rejects
            return False
        plain = torch.tensor(plain_log_likelihoods(network, [text, *rest]))
    return torch.allclose(torch.tensor([*of_texts, *of_variants]), plain, rtol=1e-4)


@contextmanager
def _float32_weights(network: PreTrainedModel) -> Iterator[None]:
    """Holds a network's weights in float32 within the block; buffers, such as rotary frequencies, stay as they are."""
    before = [(weight, weight.data) for weight in network.parameters()]
    try:
        with torch.inference_mode(False):  # weights must be ordinary tensors
            for weight, data in before:
                weight.data = data.float()
        yield
    finally:
        for weight, data in before:
            weight.data = data
