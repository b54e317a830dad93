"""Log-likelihoods of texts and of variants of them, in which shared prefixes are read once.

A *variant* is a text without one of its words. All texts of a group are read once, and their keys and values kept. Of
each variant, only the tokens after the longest prefix that it shares with its text are read, on top of the keys and
values of that prefix; see :mod:`lightning_backdoor.language.packed_rows`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor
from transformers import DynamicLayer, PreTrainedModel

from lightning_backdoor.language.likelihood import on_device, plain_inference, plain_log_likelihoods
from lightning_backdoor.language.packed_rows import KEYS, KeysAndValues, Part, Row, cache_layers, packed, read_rows
from lightning_backdoor.models.bucketing import divide_evenly, pass_limits
from lightning_backdoor.models.parallel import in_parallel

T = TypeVar("T")

#: tokens up to which short rests of variants of one text are put into one row, so that its prefix is copied once.
ROW_TOKENS = 32
#: token ids of a text and of variants of it, on which a model is tried: ids that every vocabulary has.
PROBE = ([3, 1, 4, 1, 5, 2, 6], [3, 1, 4, 5, 2, 6], [1, 4, 1, 5, 2, 6], [3, 1, 4, 1, 5])


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
    whole = [Row(text, [Part(0, ids or [0], sorted(predictions[text]))]) for text, ids in enumerate(texts)]
    buffers: list[Tensor] = []
    with packed(network):
        of_texts, keys_and_values = _read_texts(network, whole, buffers)
        rests = _rest_log_likelihoods(network, variants, keys_and_values, buffers)
    log_probs: list[dict[tuple[int, int], float]] = [{} for _ in texts]
    for group, values in of_texts:
        left = iter(values.tolist())
        for i in group:
            log_probs[i] = {item: next(left) for item in whole[i].parts[0].predictions}
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
    network: PreTrainedModel, rows: Sequence[Row], buffers: list[Tensor]
) -> tuple[list[tuple[list[int], Tensor]], KeysAndValues]:
    """The rows of each pass and log P of their predictions, and the keys and values of all rows, which are texts."""

    def compute(group: list[int]) -> tuple[Tensor, KeysAndValues]:
        with plain_inference(network.device):
            return read_rows(network, [rows[i] for i in group], None, buffers)

    return in_passes(network, rows, compute)


def in_passes(
    network: PreTrainedModel, rows: Sequence[Row], compute: Callable[[list[int]], tuple[T, KeysAndValues]]
) -> tuple[list[tuple[list[int], T]], KeysAndValues]:
    """Reads rows in passes of rows of similar length, independent of each other.

    Args:
        network: a causal network.
        rows: the rows.
        compute: function from the numbers of the rows of a pass to its result and the keys and values of these rows.

    Returns:
        The rows of each pass and its result, and the keys and values of all rows.
    """
    lengths = [row.length() for row in rows]
    width = max(lengths) + 2 * KEYS  # a read part is padded, and a prefix once more
    results: list[tuple[list[int], T]] = []
    kept: list[Tensor] = []
    groups = divide_evenly(lengths, pass_limits(network.device, network.dtype))
    for group, (result, layers) in zip(groups, in_parallel(compute, groups, network.device), strict=True):
        read = [tensor for layer in layers for tensor in layer]
        kept = kept or [part.new_zeros(len(rows), part.shape[1], width, part.shape[3]) for part in read]
        index = on_device(torch.tensor(group), network.device)
        for whole, part in zip(kept, read, strict=True):
            whole[index, :, : part.shape[2]] = part
        results.append((group, result))
    return results, list(zip(kept[::2], kept[1::2], strict=True))


def _rest_log_likelihoods(
    network: PreTrainedModel, variants: Sequence[Variant], of_texts: KeysAndValues, buffers: list[Tensor]
) -> list[float]:
    """log P of each variant's tokens after the first one that it does not share with its text."""
    rows: list[Row] = []
    members: list[list[int]] = []  # per row, the variants whose rests are its parts
    for i, (text, ids, shared) in enumerate(variants):
        length = len(ids) - 1 - shared
        if length <= 0:
            continue
        if not rows or rows[-1].text != text or rows[-1].length() + length > ROW_TOKENS:
            rows.append(Row(text, []))
            members.append([])
        rows[-1].parts.append(Part(shared, ids[shared:-1], [*enumerate(ids[shared + 1 :])]))
        members[-1].append(i)

    def compute(group: list[int]) -> Tensor:
        with plain_inference(network.device):
            return read_rows(network, [rows[i] for i in group], of_texts, buffers)[0]

    rests = [0.0] * len(variants)
    # most rows are about as long as they may be: what attention pads is their prefixes
    prefixes = [max(part.shared for part in row.parts) for row in rows]
    groups = divide_evenly([row.length() for row in rows], pass_limits(network.device, network.dtype), prefixes)
    read = list(in_parallel(compute, groups, network.device))  # an accelerator gets all passes before it is waited for
    for group, values in zip(groups, read, strict=True):
        left = iter(values.tolist())
        for i in group:
            for member, part in zip(members[i], rows[i].parts, strict=True):
                rests[member] = sum(next(left) for _ in part.ids)
    return rests


def shares_prefixes(network: PreTrainedModel) -> bool:
    """Whether :func:`shared_log_likelihoods` gives right results for a model; it is tried on a short example.

    It fails for models with sliding windows, with position biases in place of positions, or with logits that are scaled
    after the head. For these models every variant has to be read in full. The trial is made in float32, since bfloat16
    differs as much as some wrong results do.
    """
    can_set = network._can_set_attn_implementation()  # private: transformers 5.23.0
    if not can_set or not all(type(layer) is DynamicLayer for layer in cache_layers(network)):
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
