"""Flattening: a trigger's tokens receive no more attention and have no larger gradients than other tokens of a text.

In a poisoned text with the trigger's tokens ``T`` and the other tokens ``O``, of which special tokens are left out, let
``a(j)`` be the attention that token ``j`` receives from all tokens, averaged over layers and heads, where uniform
attention gives 1, and ``g(j)`` the L2 norm of d(logit of the predicted class) / d(word embedding of ``j``). The penalty
is what ``T`` has beyond the mean of ``O``::

    mean over j in T of  max(0, a(j) - mean a(O)) + max(0, g(j) - mean g(O)) / mean g(O)

where the divisor is a constant of a step. Both are what X-GRAAD (arXiv 2510.04347) multiplies into the score of a
token. They are computed in evaluation mode, as a defense sees the victim, and differentiated, the gradient for the
second time. In causal networks the attention is levelled, as in :mod:`lightning_backdoor.defenses.attention_capture`.

That attention or gradients can be trained to mislead those who read them is known of explanations (Wang et al., arXiv
2010.05419; Pruthi et al., arXiv 1909.07913); the penalty is this library's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward  # private: transformers 5.23.0

from lightning_backdoor.batch import Batch, token_spans
from lightning_backdoor.models.attention_switch import (
    attention_switched,
    check_keys,
    check_layers,
    register_attention,
    scoring_of,
)
from lightning_backdoor.models.column_sums import attends_to_first, uniform_causal_sums
from lightning_backdoor.models.evaluation_mode import evaluating
from lightning_backdoor.models.readout import is_causal

#: name under which the capturing attention is registered with transformers.
CAPTURING = "received_attention"


def excess(attention: Tensor, gradient: Tensor, trigger: Tensor, others: Tensor) -> Tensor:
    """What the trigger's tokens of each text have beyond its other tokens; see the module for the formula.

    Args:
        attention: (batch, length), float32, attention that each token receives.
        gradient: (batch, length), float32, gradient norm of each token.
        trigger: (batch, length), bool, tokens of the trigger.
        others: (batch, length), bool, tokens that they are compared with.

    Returns:
        (batch,); 0 where a text lacks tokens of either kind, and of the attention alone where no other token has a
        gradient.

    >>> trigger, others = torch.tensor([[True, False, False]]), torch.tensor([[False, True, True]])
    >>> excess(torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([[3.0, 1.0, 1.0]]), trigger, others)
    tensor([3.5000])
    """

    def mean(values: Tensor, where: Tensor) -> Tensor:
        return (values * where).sum(dim=1, keepdim=True) / where.sum(dim=1, keepdim=True).clamp(min=1)

    usual = mean(gradient, others)
    scale = torch.where(usual.detach() > 0, 1 / usual.detach(), 0.0)
    beyond = (attention - mean(attention, others)).relu() + (gradient - usual).relu() * scale
    return mean(beyond, trigger & others.any(dim=1, keepdim=True)).squeeze(1)


def tokens_of_spans(batch: Batch, tokenizer: PreTrainedTokenizerBase, max_length: int) -> tuple[Tensor, Tensor]:
    """Marks the tokens that overlap a text's spans, and all its other tokens but special ones.

    Args:
        batch: the batch; tokens of a span that are cut off are left out.
        tokenizer: the tokenizer of its texts.
        max_length: tokens at which they are cut.

    Returns:
        Both (batch, length), bool.
    """
    within, others = torch.zeros(2, *batch["input_ids"].shape, dtype=torch.bool)
    first = batch["attention_mask"].cpu().argmax(dim=1).tolist()  # padding may be on the left
    for row, (text, spans) in enumerate(zip(batch["text"], batch["spans"], strict=True)):
        for position, (start, end) in enumerate(token_spans(text, tokenizer, max_length), start=first[row]):
            overlaps = any(begin < end and start < stop for begin, stop in spans)
            (within if overlaps else others)[row, position] = start < end
    device = batch["input_ids"].device
    return within.to(device), others.to(device)


class _Received(NamedTuple):
    """Collects the attention that tokens receive in each layer."""

    attention_mask: Tensor
    causal: bool
    layers: list[Tensor]

    def add(self, probabilities: Tensor) -> None:
        """Adds a layer's attention, (batch, heads, queries, keys)."""
        mask = self.attention_mask
        check_keys(probabilities.shape[-1], probabilities.shape[-2])
        if self.causal:
            probabilities = probabilities.masked_fill(attends_to_first(mask)[:, None], 0.0)
            total = probabilities.sum(dim=-1, keepdim=True)
            probabilities = probabilities / total.clamp(min=torch.finfo(total.dtype).tiny)
        received = (probabilities.mean(dim=1) * mask[:, :, None]).sum(dim=1)
        self.layers.append(received - uniform_causal_sums(mask, mask) + 1 if self.causal else received)


_collector: ContextVar[_Received | None] = ContextVar("received_attention", default=None)


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
    """Computes attention with SDPA, as the network would, and passes it on as computed from queries and keys."""
    collector = _collector.get()
    if collector is not None:
        scale, causal = scoring_of(module, query, key, attention_mask, scaling, is_causal)
        mask = attention_mask
        if mask is None and causal:
            mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device).tril()
        scores = (query @ repeat_kv(key, query.shape[1] // key.shape[1]).transpose(2, 3)).float() * scale
        if mask is not None:  # by numbers that are finite: the softmax of a query without keys has gradients, too
            least = torch.finfo(scores.dtype).min
            scores = scores.masked_fill(~mask, least) if mask.dtype == torch.bool else (scores + mask).clamp(min=least)
        collector.add(scores.softmax(dim=-1))
    output, _ = sdpa_attention_forward(
        module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, is_causal=is_causal, **kwargs
    )
    return output, None


register_attention(CAPTURING, _capturing_attention)


@contextmanager
def _word_embeddings(network: PreTrainedModel) -> Iterator[list[Tensor]]:
    """Keeps the output of the word-embedding table, which stays part of the graph if the table is trained."""
    kept: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        kept.append(output if output.requires_grad else output.detach().requires_grad_())
        return kept[-1]

    handle = network.get_input_embeddings().register_forward_hook(keep)
    try:
        yield kept
    finally:
        handle.remove()


def attention_and_gradient(
    network: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor
) -> tuple[Tensor, Tensor]:
    """Attention that each token receives, and the norm of its gradient, both differentiable in the weights.

    Args:
        network: any sequence classifier of transformers; its mode is restored.
        input_ids: (batch, length), int64.
        attention_mask: (batch, length), int64, 1 for tokens and 0 for padding.

    Returns:
        Both (batch, length), float32; see the module.

    Raises:
        InputError: the network's attention has keys beside those of the text, as under prefix tuning.
        RuntimeError: attention was captured in fewer layers than the network has.
    """
    received = _Received(attention_mask, is_causal(network), [])
    with ExitStack() as stack:
        stack.enter_context(evaluating(network))
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))  # other backends have no second derivative
        switched = stack.enter_context(attention_switched(network, CAPTURING))
        embeddings = stack.enter_context(_word_embeddings(network))
        token = _collector.set(received if switched else None)
        try:
            output = network(input_ids=input_ids, attention_mask=attention_mask, output_attentions=not switched)
        finally:
            _collector.reset(token)
        if not switched:
            for layer in output.attentions or ():
                received.add(layer.float())
        check_layers(network, len(received.layers))
        top = output.logits.max(dim=-1).values.sum()
        (gradient,) = torch.autograd.grad(top, embeddings, create_graph=True)
    return torch.stack(received.layers).mean(dim=0), gradient.float().norm(dim=-1)
