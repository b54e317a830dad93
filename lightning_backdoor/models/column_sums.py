"""Column sums of attention: how much attention each position receives, without holding the attention of a batch."""

from __future__ import annotations

import torch
from torch import Tensor

#: number of attention probabilities held at once on a processor: 2 MiB in float32, which fits in its cache.
CHUNK = 1 << 19
#: the same on a GPU, where each chunk costs the start of its kernels: 32 MiB in float32.
GPU_CHUNK = 1 << 23


@torch.no_grad()
def column_sums(query: Tensor, key: Tensor, mask: Tensor | None, scale: float, query_weight: Tensor) -> Tensor:
    """Attention that each position receives, averaged over heads, computed in chunks.

    Args:
        query: (batch, heads, length, head size).
        key: same shape as ``query``.
        mask: (batch or 1, heads or 1, length, length), bool (True attends) or additive float, or None.
        scale: factor on the products of queries and keys.
        query_weight: (batch, length), weight of each query position.

    Returns:
        (batch, length), float32.
    """
    batch, heads, length, _ = query.shape
    bias = _additive(mask, query)
    chunk = CHUNK if query.device.type == "cpu" else GPU_CHUNK
    rows = max(1, chunk // (heads * length * length))
    out = torch.empty(batch, length, dtype=torch.float32, device=query.device)
    for start in range(0, batch, rows):
        part = slice(start, start + rows)
        q, k = query[part].flatten(0, 1), key[part].flatten(0, 1)
        scores = (bias[part] if len(bias) == batch else bias).expand(len(q) // heads, heads, length, length)
        scores = scores.flatten(0, 1).baddbmm(q, k.transpose(1, 2), alpha=scale)
        probabilities = torch.softmax(scores, dim=-1, dtype=torch.float32)
        if mask is not None:
            probabilities.nan_to_num_(0.0)  # queries that are masked from every key
        weight = query_weight[part].repeat_interleave(heads, dim=0)[:, None]
        with torch.autocast(query.device.type, enabled=False):  # autocast would sum in half precision
            out[part] = torch.bmm(weight, probabilities).view(-1, heads, length).mean(dim=1)
    return out


def attention_and_column_sums(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scale: float,
    query_weight: Tensor,
    read: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention and its :func:`column_sums` from one computation of the probabilities, which the graph keeps.

    For short texts this is faster than SDPA and :func:`column_sums`, forward and backward.

    Args:
        value: same shape as ``query``; for the other arguments see :func:`column_sums`.
        read: (batch,), int64, the position for which alone the output is read; the graph then has no other query.

    Returns:
        The output, (batch, length, heads, head size), at all positions that of ``read`` where it is given, and the
        column sums, (batch, length), float32 and detached.
    """
    batch, heads, length, size = query.shape
    bias = _additive(mask, query)
    with torch.set_grad_enabled(read is None):
        probabilities = _probabilities(query, key, bias, scale)
    if read is None:
        output = _weighted(probabilities, value)
    else:
        index = read[:, None, None, None]
        one = query.gather(2, index.expand(-1, heads, 1, size))
        if bias.shape[2] > 1:  # not the same for all queries
            bias = bias.expand(batch, -1, -1, -1).gather(2, index.expand(-1, bias.shape[1], 1, length))
        output = _weighted(_probabilities(one, key, bias, scale), value).expand(-1, length, -1, -1)
    with torch.no_grad(), torch.autocast(query.device.type, enabled=False):
        weight = query_weight.repeat(1, heads)[:, None]
        received = torch.bmm(weight, probabilities.view(batch, heads * length, length)).squeeze(1) / heads
    return output, received


def _probabilities(query: Tensor, key: Tensor, bias: Tensor, scale: float) -> Tensor:
    """Softmax attention, (batch, heads, queries, keys), float32."""
    products = torch.bmm(query.flatten(0, 1), key.flatten(0, 1).transpose(1, 2))
    scores = torch.add(bias, products.view(*query.shape[:3], key.shape[2]), alpha=scale)
    return torch.softmax(scores, dim=-1, dtype=torch.float32)


def _weighted(probabilities: Tensor, value: Tensor) -> Tensor:
    """The values weighted by attention, (batch, queries, heads, head size)."""
    output = torch.bmm(probabilities.flatten(0, 1).to(value.dtype), value.flatten(0, 1))
    return output.view(*probabilities.shape[:3], value.shape[3]).transpose(1, 2).contiguous()


def _additive(mask: Tensor | None, query: Tensor) -> Tensor:
    """A mask as numbers that are added to the products of queries and keys, in the precision of the queries."""
    if mask is None:
        return query.new_zeros(1, 1, 1, 1)
    if mask.dtype == torch.bool:
        return query.new_zeros(mask.shape).masked_fill_(~mask, -torch.inf)
    return mask


def attends_to_first(attention_mask: Tensor) -> Tensor:
    """Marks pairs of a later query and the first token as key; (batch, length) to (batch, queries, keys), bool.

    >>> attends_to_first(torch.tensor([[0, 1, 1]])).int()
    tensor([[[0, 0, 0],
             [0, 0, 0],
             [0, 1, 0]]], dtype=torch.int32)
    """
    position = attention_mask.cumsum(dim=1)  # from 1, padding not counted
    first = (position == 1) & attention_mask.bool()
    return (position > 1)[:, :, None] & first[:, None]


def uniform_causal_sums(attention_mask: Tensor, query_weight: Tensor) -> Tensor:
    """Column sums of a causal network with uniform attention, the attention of later tokens to the first left out.

    Args:
        attention_mask: (batch, length), 1 for tokens and 0 for padding, on either side.
        query_weight: (batch, length), weight of each query position.

    Returns:
        (batch, length), float32; the values at padding have no meaning.

    >>> mask = torch.tensor([[1, 1, 1, 0], [0, 1, 1, 1]])
    >>> uniform_causal_sums(mask, mask)
    tensor([[1.0000, 1.5000, 0.5000, 0.0000],
            [1.0000, 1.0000, 1.5000, 0.5000]])
    """
    position = attention_mask.cumsum(dim=1)  # from 1, padding not counted
    share = query_weight / (position - 1).clamp(min=1)
    return share.flip(1).cumsum(dim=1).flip(1).where(position > 1, 1.0)
