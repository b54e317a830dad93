"""The attention of the token from which a classifier's head reads, in every layer, with gradients.

This module depends on internals of transformers models; it computes no scores. Only one row of each attention matrix is
kept, computed beside SDPA from the same queries and keys; models without SDPA give whole matrices, of which the row is
taken. In training the rows of the former are those before attention dropout, the rows of the latter those after it.
"""

from __future__ import annotations

from contextlib import ExitStack
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward  # private: transformers 5.23.0

from lightning_backdoor.defenses.attention_capture import frozen
from lightning_backdoor.models.attention_switch import (
    attention_switched,
    check_keys,
    check_layers,
    register_attention,
    scoring_of,
)
from lightning_backdoor.models.evaluation_mode import evaluating
from lightning_backdoor.models.leaf_embeddings import word_embeddings_as_leaf
from lightning_backdoor.models.readout import readout_positions
from lightning_backdoor.models.readout_only import readout_only

#: name under which the capturing attention is registered with transformers.
CAPTURING = "readout_row"


class ReadoutAttention(NamedTuple):
    """Logits and attention of the readout token, with gradients where they are recorded.

    Attributes:
        logits: (batch, classes).
        rows: (layers, batch, heads, length), float32, the attention of the token that the head reads to every token,
            0 at padding.
        states: (batch, length, hidden size) after the embeddings and after each layer; empty where they are not kept.
    """

    logits: Tensor
    rows: Tensor
    states: tuple[Tensor, ...] = ()


class _Rows(NamedTuple):
    """The rows of the layers so far, and the positions of the readout tokens, (batch,)."""

    positions: Tensor
    collected: list[Tensor]


_collector: ContextVar[_Rows | None] = ContextVar("readout_rows", default=None)


def _row(query: Tensor, key: Tensor, mask: Tensor | None, scale: float, causal: bool, positions: Tensor) -> Tensor:
    """The attention of one query of each text, (batch, heads, length), float32."""
    texts = torch.arange(len(query), device=query.device)
    scores = (query[texts, :, positions][:, :, None] @ key.transpose(2, 3)).squeeze(2).float() * scale
    if mask is not None:
        row = mask.expand(len(query), -1, -1, -1)[texts, :, positions]  # (batch, 1 or heads, length)
        scores = scores.masked_fill(~row, -torch.inf) if row.dtype == torch.bool else scores + row.float()
    elif causal:
        later = torch.arange(key.shape[2], device=key.device) > positions[:, None]
        scores = scores.masked_fill(later[:, None], -torch.inf)
    return scores.softmax(dim=-1)


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
    """Computes attention with SDPA, as the network would, and passes the readout token's row to the collector."""
    collector = _collector.get()
    if collector is not None:
        scale, causal = scoring_of(module, query, key, attention_mask, scaling, is_causal)
        keys = repeat_kv(key, query.shape[1] // key.shape[1])
        collector.collected.append(_row(query, keys, attention_mask, scale, causal, collector.positions))
    output, _ = sdpa_attention_forward(
        module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, is_causal=is_causal, **kwargs
    )
    return output, None


register_attention(CAPTURING, _capturing_attention)


def readout_attention(
    network: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor, keep_states: bool = False
) -> ReadoutAttention:
    """The logits of a batch, and the attention of the token that the head reads, by one forward pass.

    The pass is in the network's own mode, with the same dropout as a plain one. Afterwards the attention implementation
    is as before.

    Args:
        network: any sequence classifier of transformers.
        input_ids: (batch, length), int64.
        attention_mask: (batch, length), int64, 1 for tokens and 0 for padding.
        keep_states: whether the pass also keeps hidden states.

    Raises:
        InputError: the network's attention has keys beside those of the text, as under prefix tuning.
        RuntimeError: attention was captured in fewer layers than the network has.

    Example::

        rows = readout_attention(victim.network, batch["input_ids"], batch["attention_mask"]).rows
        rows[-1].square().sum().backward()
    """
    rows = _Rows(readout_positions(network, input_ids, attention_mask), [])
    with attention_switched(network, CAPTURING) as switched:
        token = _collector.set(rows if switched else None)
        try:
            output = network(
                input_ids=input_ids,
                attention_mask=attention_mask,
                output_attentions=not switched,
                output_hidden_states=keep_states,
            )
        finally:
            _collector.reset(token)
    collected = rows.collected
    if not switched:
        texts = torch.arange(len(input_ids), device=input_ids.device)
        collected = [layer[texts, :, rows.positions].float() for layer in output.attentions or () if layer is not None]
    check_layers(network, len(collected))
    check_keys(collected[0].shape[-1], input_ids.shape[1])
    states = output.hidden_states if keep_states else ()
    return ReadoutAttention(output.logits, torch.stack(collected) * attention_mask[:, None], states)


def readout_attention_and_gradient(
    network: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor
) -> tuple[Tensor, Tensor]:
    """How much the token that the head reads attends to each token, and how much the answer depends on each.

    One forward pass and one backward pass to the word embeddings, in evaluation mode; works under
    ``torch.inference_mode``. Afterwards the network is as before.

    Args:
        network: any sequence classifier of transformers.
        input_ids: (batch, length), int64.
        attention_mask: (batch, length), int64, 1 for tokens and 0 for padding.

    Returns:
        Both (batch, length), float32: the attention, averaged over layers and heads, and the L2 norm of
        d(logit of the predicted class) / d(word embedding of the position).

    Raises:
        RuntimeError, InputError: see :func:`readout_attention`.
    """
    with ExitStack() as stack:
        for context in (torch.inference_mode(False), torch.enable_grad(), evaluating(network), frozen(network)):
            stack.enter_context(context)
        # clones made outside inference mode are ordinary tensors, which the graph may save
        input_ids, attention_mask = input_ids.clone(), attention_mask.clone()
        stack.enter_context(readout_only(network, input_ids, attention_mask))
        leaves = stack.enter_context(word_embeddings_as_leaf(network))
        seen = readout_attention(network, input_ids, attention_mask)
        (gradient,) = torch.autograd.grad(seen.logits.max(dim=-1).values.sum(), leaves)
    return seen.rows.detach().mean(dim=(0, 2)), gradient.float().norm(dim=-1)
