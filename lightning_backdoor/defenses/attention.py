"""One forward and one backward that yield what gradient-attention scoring needs, and nothing more.

Knows transformers models, knows nothing of scores. Attention probabilities are reduced to column sums inside each
layer, so no tensor of shape (layers, heads, length, length) is ever held.
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
            attention, averaged over layers and heads.
        gradient: (batch, length), L2 norm of d(logit of the predicted class) / d(word embedding of the position).
    """

    logits: Tensor
    attention: Tensor
    gradient: Tensor


class _ColumnSums:
    """Adds up, layer by layer, the attention each position receives from the query rows that count."""

    def __init__(self, query_weight: Tensor) -> None:
        self.query_weight = query_weight  # (batch, length), 1 where the query row counts
        self.total: Tensor = torch.zeros_like(query_weight)
        self.layers = 0

    def add(self, received: Tensor) -> None:
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
        causal = is_causal if is_causal is not None else getattr(module, "is_causal", True)
        if mask is None and causal and query.shape[2] > 1:
            mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device).tril()[None, None]
        scale = scaling if scaling is not None else query.shape[-1] ** -0.5
        groups = query.shape[1] // key.shape[1]
        collector.add(column_sums(query, repeat_kv(key, groups), mask, scale, collector.query_weight))
    return output, None


AttentionInterface.register(CAPTURING, _capturing_attention)
AttentionMaskInterface.register(CAPTURING, sdpa_mask)  # without it BERT-like models silently get no mask


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
    network: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor, count_padding: bool = False
) -> AttentionAndGradient:
    """One forward and one backward to the word embeddings alone.

    Works under ``torch.inference_mode`` (Lightning's default in evaluation): the mode is left for the pass. The
    network's attention implementation, training flags and ``requires_grad`` are as before afterwards.

    Args:
        network: any sequence classifier of transformers.
        input_ids: (batch, length), int64.
        attention_mask: (batch, length), int64, 1 for tokens and 0 for padding.
        count_padding: whether padded query rows add attention, as in the published code of X-GRAAD.

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
        collector = _ColumnSums(weight.float())
        token = _collector.set(collector if captured else None)
        try:
            output = network(input_ids=input_ids, attention_mask=attention_mask, output_attentions=not captured)
        finally:
            _collector.reset(token)
        if not captured:
            for layer in [layer for layer in output.attentions or () if layer is not None]:
                collector.add(torch.einsum("bhij,bi->bj", layer.detach().float(), weight.float()) / layer.shape[1])
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
