"""Attention received and gradient norm per token, by one forward and one backward pass, in little memory.

This module depends on internals of transformers models; it does not compute anomaly scores. Attention probabilities are
reduced to column sums inside each layer, so that no tensor of shape (layers, heads, length, length) is ever held,
except for short texts, whose probabilities each layer of an encoder keeps for the backward pass.

Where every token attends to every other, column sums have mean 1, and uniform attention gives every token 1. Under a
causal mask token j of N receives attention from the queries i >= j alone, and query i shares its attention among i
tokens, so that uniform attention gives token j the sum over i >= j of 1/i, which is H_N - H_(j-1) or about ln(N/j):
most for the first token, 1/N for the last. In addition, a causal network puts attention that it does not need on the
first token, whatever that token is (arXiv 2309.17453), as encoders put it on special tokens, which are never scored.
Therefore the column sums of causal networks are *levelled*: the attention of later tokens to the first token is left
out, the sum that uniform attention would then give is subtracted, and 1 is added. A token that receives as much
attention as under uniform attention again has 1. The uniform share is subtracted, not divided by: a quotient would
favour the last tokens, for which the random attention of the few queries that see them would be multiplied.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward  # private: transformers 5.23.0

from lightning_backdoor.models.attention_switch import (
    attention_switched,
    check_keys,
    check_layers,
    register_attention,
    scoring_of,
)
from lightning_backdoor.models.column_sums import (
    attends_to_first,
    attention_and_column_sums,
    column_sums,
    uniform_causal_sums,
)
from lightning_backdoor.models.evaluation_mode import evaluating
from lightning_backdoor.models.leaf_embeddings import word_embeddings_as_leaf
from lightning_backdoor.models.readout_only import readout_only

#: name under which the capturing attention is registered with transformers.
CAPTURING = "column_sums"
#: number of attention probabilities that a layer may keep for its backward pass: 8 MiB in float32.
KEPT = 1 << 21


class AttentionAndGradient(NamedTuple):
    """Logits, attention received and gradient norms of a batch, float32 and detached.

    Attributes:
        logits: (batch, classes).
        attention: (batch, length), attention that each position receives: the sum over query positions of the softmax
            attention, averaged over layers and heads; levelled (see the module) in causal networks.
        gradient: (batch, length), L2 norm of d(logit of the predicted class) / d(word embedding of the position).
    """

    logits: Tensor
    attention: Tensor
    gradient: Tensor


class _ColumnSums:
    """Accumulates over layers the attention that each position receives from the query positions that count."""

    def __init__(
        self, attention_mask: Tensor, query_weight: Tensor, level: bool, layers: int, read: Tensor | None
    ) -> None:
        self.attention_mask = attention_mask
        self.expected = layers
        self._read = read  # (batch,), the position for which alone the last layer's output is read, or None
        self.query_weight = query_weight  # (batch, length), float32, 1 where the query position counts
        self.level = level
        self.total: Tensor = torch.zeros_like(query_weight)
        self.layers = 0

    @property
    def read(self) -> Tensor | None:
        """The position for which alone the output of the layer that comes next is read; None if it is read for all."""
        return self._read if self.layers == self.expected - 1 else None

    def add(self, received: Tensor, levelled: bool) -> None:
        if levelled:
            received = received - uniform_causal_sums(self.attention_mask, self.query_weight) + 1
        self.total += received
        self.layers += 1


_collector: ContextVar[_ColumnSums | None] = ContextVar("column_sums", default=None)


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
    """Computes attention, with SDPA as the network would if texts are long, and passes column sums to the collector."""
    collector = _collector.get()
    scale, causal = scoring_of(module, query, key, attention_mask, scaling, is_causal)
    groups = query.shape[1] // key.shape[1]
    # a window may leave a padded query no key, and its softmax would be NaN
    plain = all(kwargs.get(name) is None for name in ("sliding_window", "position_bias", "softcap", "cache"))
    short = query.shape[:3].numel() * key.shape[2] <= KEPT
    if collector is not None and short and plain and not causal and not dropout:
        keys, values = repeat_kv(key, groups), repeat_kv(value, groups)
        weight, read = collector.query_weight, collector.read
        output, received = attention_and_column_sums(query, keys, values, attention_mask, scale, weight, read)
        collector.add(received, False)
        return output, None
    output, _ = sdpa_attention_forward(
        module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, is_causal=is_causal, **kwargs
    )
    if collector is not None:
        mask = attention_mask
        if mask is None and causal:
            mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device).tril()[None, None]
        level = causal and collector.level
        if mask is not None and level:
            excluded = False if mask.dtype == torch.bool else -torch.inf
            mask = mask.masked_fill(attends_to_first(collector.attention_mask)[:, None], excluded)
        collector.add(column_sums(query, repeat_kv(key, groups), mask, scale, collector.query_weight), level)
    return output, None


register_attention(CAPTURING, _capturing_attention)


@contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """Freezes all parameters within the block, so that activations only needed for weight gradients are freed."""
    parameters = [p for p in network.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


def attention_and_gradient(
    network: PreTrainedModel,
    input_ids: Tensor,
    attention_mask: Tensor,
    count_padding: bool = False,
    level: bool = True,
) -> AttentionAndGradient:
    """Attention received and gradient norm of each token, by one forward and one backward pass to the embeddings.

    Works under ``torch.inference_mode`` (Lightning's default in evaluation), which is switched off during the pass.
    Afterwards the network's attention implementation, training flags and ``requires_grad`` are as before.

    Args:
        network: any sequence classifier of transformers.
        input_ids: (batch, length), int64.
        attention_mask: (batch, length), int64, 1 for tokens and 0 for padding.
        count_padding: whether attention from padded query positions counts, as in the published code of X-GRAAD.
        level: whether to level the column sums of a causal network, see the module.

    Raises:
        RuntimeError: attention was captured in fewer layers than the network has.
        InputError: the network's attention has keys beside those of the text.
    """
    with ExitStack() as stack:
        for context in (torch.inference_mode(False), torch.enable_grad(), evaluating(network), frozen(network)):
            stack.enter_context(context)
        # clones made outside inference mode are ordinary tensors, which the graph may save
        input_ids, attention_mask = input_ids.clone(), attention_mask.clone()
        read = stack.enter_context(readout_only(network, input_ids, attention_mask))
        captured = stack.enter_context(attention_switched(network, CAPTURING))
        leaves = stack.enter_context(word_embeddings_as_leaf(network))
        weight = torch.ones_like(attention_mask) if count_padding else attention_mask
        collector = _ColumnSums(attention_mask, weight.float(), level, network.config.num_hidden_layers, read)
        token = _collector.set(collector if captured else None)
        try:
            output = network(input_ids=input_ids, attention_mask=attention_mask, output_attentions=not captured)
        finally:
            _collector.reset(token)
        if not captured:
            _add_attentions(collector, output.attentions or ())
        check_layers(network, collector.layers)
        (leaf,) = leaves
        top = output.logits.max(dim=-1).values.sum()
        (gradient,) = torch.autograd.grad(top, leaf)
    return AttentionAndGradient(
        logits=output.logits.detach().float(),
        attention=collector.total / collector.layers,
        gradient=gradient.float().norm(dim=-1),
    )


def _add_attentions(collector: _ColumnSums, attentions: Sequence[Tensor | None]) -> None:
    """Adds the attention of all layers of a network whose attention cannot be switched."""
    for layer in [layer for layer in attentions if layer is not None]:
        attention = layer.detach().float()
        check_keys(attention.shape[-1], attention.shape[-2])
        levelled = collector.level and not attention.triu(1).any()  # no token attends to a later one
        if levelled:
            attention = attention.masked_fill(attends_to_first(collector.attention_mask)[:, None], 0.0)
            total = attention.sum(dim=-1, keepdim=True)
            attention = attention / total.clamp(min=torch.finfo(attention.dtype).tiny)
        received = torch.einsum("bhij,bi->bj", attention, collector.query_weight) / attention.shape[1]
        collector.add(received, levelled)
