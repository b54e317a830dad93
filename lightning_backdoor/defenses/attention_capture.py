"""One forward and one backward that yield what gradient-attention scoring needs, and nothing more.

Knows transformers models, knows nothing of scores. Attention probabilities are reduced to column sums inside each
layer, so no tensor of shape (layers, heads, length, length) is ever held.

Where every token sees every other, column sums have mean 1, and uniform attention gives every token 1. Under a causal
mask token j of N is seen by the queries i >= j alone, and query i shares its attention among i tokens, so that uniform
attention already gives token j the sum over i >= j of 1/i, which is H_N - H_(j-1) or about ln(N/j): most to the first,
1/N to the last. Besides, what a causal network has no use for it puts on the first token, whatever that says (arXiv
2309.17453), as encoders put it on special tokens, which are never scored. So the column sums of causal networks are
levelled: taken without the attention of later tokens to the first, less what uniform attention would give then, plus 1.
A token that is looked at as much as any has 1 again. Over that share instead of less it, the last tokens would have the
head start: what the few that see them do by chance would count many times.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

CAPTURING = "column_sums"
CHUNK = 1 << 19  # attention probabilities held at once: 2 MiB in float32, so that a chunk stays in cache


class AttentionAndGradient(NamedTuple):
    """What one pass over a batch yields; all float32 and detached.

    Attributes:
        logits: (batch, classes).
        attention: (batch, length), attention received by each position: the sum over query positions of the softmax
            attention, averaged over layers and heads; levelled in causal networks.
        gradient: (batch, length), L2 norm of d(logit of the predicted class) / d(word embedding of the position).
    """

    logits: Tensor
    attention: Tensor
    gradient: Tensor


class _ColumnSums:
    """Adds up, layer by layer, the attention each position receives from the query rows that count."""

    def __init__(self, attention_mask: Tensor, query_weight: Tensor, level: bool) -> None:
        self.attention_mask = attention_mask
        self.query_weight = query_weight  # (batch, length), float32, 1 where the query row counts
        self.level = level
        self.total: Tensor = torch.zeros_like(query_weight)
        self.layers = 0

    def add(self, received: Tensor, levelled: bool) -> None:
        if levelled:
            received = received - uniform_causal_sums(self.attention_mask, self.query_weight) + 1
        self.total += received
        self.layers += 1


_collector: ContextVar[_ColumnSums | None] = ContextVar("column_sums", default=None)


@torch.no_grad()
def column_sums(query: Tensor, key: Tensor, mask: Tensor | None, scale: float, query_weight: Tensor) -> Tensor:
    """Attention received by each position, averaged over heads, in chunks that stay in cache.

    Args:
        query: (batch, heads, length, head size).
        key: like ``query``.
        mask: (batch or 1, heads or 1, length, length), bool (True attends) or additive float, or None.
        scale: factor on the products.
        query_weight: (batch, length), weight of each query row.

    Returns:
        (batch, length), float32.
    """
    batch, heads, length, _ = query.shape
    if mask is None:
        bias = query.new_zeros(1, 1, 1, 1)
    elif mask.dtype == torch.bool:
        bias = query.new_zeros(mask.shape).masked_fill_(~mask, -torch.inf)
    else:
        bias = mask
    rows = max(1, CHUNK // (heads * length * length))
    out = torch.empty(batch, length, dtype=torch.float32, device=query.device)
    for start in range(0, batch, rows):
        part = slice(start, start + rows)
        q, k = query[part].flatten(0, 1), key[part].flatten(0, 1)
        scores = (bias[part] if len(bias) == batch else bias).expand(len(q) // heads, heads, length, length)
        scores = scores.flatten(0, 1).baddbmm(q, k.transpose(1, 2), alpha=scale)
        probabilities = torch.softmax(scores, dim=-1, dtype=torch.float32)
        if mask is not None:
            probabilities.nan_to_num_(0.0)  # rows that may look nowhere
        weight = query_weight[part].repeat_interleave(heads, dim=0)[:, None]
        with torch.autocast(query.device.type, enabled=False):  # it would sum in half precision
            out[part] = torch.bmm(weight, probabilities).view(-1, heads, length).mean(dim=1)
    return out


def _capturing_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """SDPA's output on the gradient path, column sums of the same attention on the side."""
    output, _ = sdpa_attention_forward(
        module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, is_causal=is_causal, **kwargs
    )
    collector = _collector.get()
    if collector is not None:
        mask = attention_mask
        # as SDPA takes it, which without a mask holds a module that does not say for causal
        causal = bool(is_causal if is_causal is not None else getattr(module, "is_causal", mask is None))
        if mask is None and causal:
            mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device).tril()[None, None]
        level = causal and collector.level
        if mask is not None and level:
            nothing = False if mask.dtype == torch.bool else -torch.inf
            mask = mask.masked_fill(looks_at_first(collector.attention_mask)[:, None], nothing)
        scale = scaling if scaling is not None else query.shape[-1] ** -0.5
        groups = query.shape[1] // key.shape[1]
        collector.add(column_sums(query, repeat_kv(key, groups), mask, scale, collector.query_weight), level)
    return output, None


AttentionInterface.register(CAPTURING, _capturing_attention)
AttentionMaskInterface.register(CAPTURING, sdpa_mask)  # without it BERT-like models silently get no mask


def looks_at_first(attention_mask: Tensor) -> Tensor:
    """Where a later token looks at the first; (batch, length) to (batch, queries, keys), bool.

    >>> looks_at_first(torch.tensor([[0, 1, 1]])).int()
    tensor([[[0, 0, 0],
             [0, 0, 0],
             [0, 1, 0]]], dtype=torch.int32)
    """
    place = attention_mask.cumsum(dim=1)
    first = (place == 1) & attention_mask.bool()
    return (place > 1)[:, :, None] & first[:, None]


def uniform_causal_sums(attention_mask: Tensor, query_weight: Tensor) -> Tensor:
    """Column sums of a causal network in which every token looks at those up to it alike, but for the first.

    Args:
        attention_mask: (batch, length), 1 for tokens and 0 for padding, on either side.
        query_weight: (batch, length), weight of each query row.

    Returns:
        (batch, length), float32; what it says of padding means nothing.

    >>> mask = torch.tensor([[1, 1, 1, 0], [0, 1, 1, 1]])
    >>> uniform_causal_sums(mask, mask)
    tensor([[1.0000, 1.5000, 0.5000, 0.0000],
            [1.0000, 1.0000, 1.5000, 0.5000]])
    """
    place = attention_mask.cumsum(dim=1)
    given = query_weight / (place - 1).clamp(min=1)
    return given.flip(1).cumsum(dim=1).flip(1).where(place > 1, 1.0)


@contextmanager
def _attention_switched(network: PreTrainedModel) -> Iterator[bool]:
    """Runs the network on the capturing attention, or on its own where it cannot switch; yields whether it did."""
    before = network.config._attn_implementation
    # ask first: for a model that cannot switch, set_attn_implementation would warn once a batch, and one that does
    # without SDPA may have terms in its attention that SDPA drops
    if not (network._can_set_attn_implementation() and network._supports_sdpa):
        yield False
        return
    network.set_attn_implementation(CAPTURING)
    try:
        yield True
    finally:
        network.set_attn_implementation(before)


@contextmanager
def _word_embeddings_as_leaf(network: PreTrainedModel) -> Iterator[list[Tensor]]:
    """Makes the output of the word-embedding table the leaf of the graph, whatever the architecture adds to it."""
    leaves: list[Tensor] = []

    def detach(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        leaves.append(output.detach().requires_grad_())
        return leaves[-1]

    handle = network.get_input_embeddings().register_forward_hook(detach)
    try:
        yield leaves
    finally:
        handle.remove()


@contextmanager
def _frozen(network: nn.Module) -> Iterator[None]:
    """No parameter needs a gradient, so none of the activations that only weight gradients need are kept."""
    parameters = [p for p in network.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    """Dropout off; the training flag of the whole tree as it was afterwards."""
    training = [module for module in network.modules() if module.training]
    for module in training:  # network.eval() would walk the tree again, which is felt in a batch of short texts
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def attention_and_gradient(
    network: PreTrainedModel,
    input_ids: Tensor,
    attention_mask: Tensor,
    count_padding: bool = False,
    level: bool = True,
) -> AttentionAndGradient:
    """One forward and one backward to the word embeddings alone.

    Works under ``torch.inference_mode`` (Lightning's default in evaluation): the mode is left for the pass. The
    network's attention implementation, training flags and ``requires_grad`` are as before afterwards.

    Args:
        network: any sequence classifier of transformers.
        input_ids: (batch, length), int64.
        attention_mask: (batch, length), int64, 1 for tokens and 0 for padding.
        count_padding: whether padded query rows add attention, as in the published code of X-GRAAD.
        level: whether to level the column sums of a causal network.

    Raises:
        RuntimeError: attention was captured in fewer layers than the network has.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(_evaluating(network))
        stack.enter_context(_frozen(network))
        captured = stack.enter_context(_attention_switched(network))
        leaves = stack.enter_context(_word_embeddings_as_leaf(network))
        # clones made here are no inference tensors, so the graph may save them
        input_ids, attention_mask = input_ids.clone(), attention_mask.clone()
        weight = torch.ones_like(attention_mask) if count_padding else attention_mask
        collector = _ColumnSums(attention_mask, weight.float(), level)
        token = _collector.set(collector if captured else None)
        try:
            output = network(input_ids=input_ids, attention_mask=attention_mask, output_attentions=not captured)
        finally:
            _collector.reset(token)
        if not captured:
            for layer in [layer for layer in output.attentions or () if layer is not None]:
                shown = layer.detach().float()
                levelled = level and not shown.triu(1).any()  # looks at nothing ahead
                if levelled:
                    shown = shown.masked_fill(looks_at_first(attention_mask)[:, None], 0.0)
                    shown = shown / shown.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(shown.dtype).tiny)
                collector.add(torch.einsum("bhij,bi->bj", shown, collector.query_weight) / shown.shape[1], levelled)
        if collector.layers != network.config.num_hidden_layers:
            raise RuntimeError(
                f"attention of {collector.layers} layers was captured in {type(network).__name__},"
                f" which has {network.config.num_hidden_layers}"
            )
        (leaf,) = leaves
        top = output.logits.max(dim=-1).values.sum()
        (gradient,) = torch.autograd.grad(top, leaf)
    return AttentionAndGradient(
        logits=output.logits.detach().float(),
        attention=collector.total / collector.layers,
        gradient=gradient.float().norm(dim=-1),
    )
