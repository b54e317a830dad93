"""Switching a network to an attention that captures something beside the output, and what such attentions share.

This module depends on internals of transformers models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import sdpa_mask  # private: transformers 5.23.0

from lightning_backdoor.errors import InputError


def register_attention(name: str, attention: Callable[..., tuple[Tensor, None]]) -> None:
    """Registers an attention that computes what SDPA does, from the masks that SDPA is given.

    Args:
        name: name for :func:`attention_switched`.
        attention: function with the arguments of transformers' attention functions.
    """
    AttentionInterface.register(name, attention)
    AttentionMaskInterface.register(name, sdpa_mask)  # otherwise BERT-like models silently run without a mask


@contextmanager
def attention_switched(network: PreTrainedModel, name: str) -> Iterator[bool]:
    """Switches the network to a registered attention within the block, if it can run it; yields whether it is switched.

    Args:
        network: any network of transformers.
        name: name of the attention, which must compute what SDPA does.
    """
    before = network.config._attn_implementation  # private: transformers 5.23.0
    # checked first: set_attn_implementation would warn per batch for a model that cannot switch, and the attention of
    # a model without SDPA may have terms that SDPA drops
    can_switch = network._can_set_attn_implementation()  # private: transformers 5.23.0
    if not (can_switch and network._supports_sdpa):  # private: transformers 5.23.0
        yield False
        return
    network.set_attn_implementation(name)
    try:
        yield True
    finally:
        network.set_attn_implementation(before)


class Scoring(NamedTuple):
    """How queries and keys become attention, before the mask.

    Attributes:
        scale: factor on the products of queries and keys.
        causal: whether tokens attend to themselves and earlier ones alone, where no mask is given.
    """

    scale: float
    causal: bool


def scoring_of(
    module: nn.Module, query: Tensor, key: Tensor, mask: Tensor | None, scaling: float | None, is_causal: bool | None
) -> Scoring:
    """Scale and causality as SDPA takes them from the arguments of an attention function.

    Args:
        module: the attention module of the network.
        query: (batch, heads, length, head size).
        key: (batch, heads of keys, length, head size).
        mask: the mask that the function is given.
        scaling: the scale that it is given.
        is_causal: the causality that it is given.

    Raises:
        InputError: there are keys beside those of the text, as under prefix tuning.
    """
    check_keys(key.shape[2], query.shape[2])
    # the rule of SDPA: without a mask, a module without is_causal counts as causal
    causal = bool(is_causal if is_causal is not None else getattr(module, "is_causal", mask is None))
    return Scoring(scaling if scaling is not None else query.shape[-1] ** -0.5, causal)


def check_keys(keys: int, tokens: int) -> None:
    """Checks that attention goes to the tokens of the text alone.

    Raises:
        InputError: there are other keys.
    """
    if keys != tokens:
        problem = "its attention has keys beside those of the text, as under prefix tuning"
        raise InputError("victim", problem, "give a defense that reads no attention")


def check_layers(network: PreTrainedModel, captured: int) -> None:
    """Checks that something was captured in every layer.

    Raises:
        RuntimeError: there are fewer layers than the network has, or more.
    """
    expected: Any = network.config.num_hidden_layers
    if captured != expected:
        name = type(network).__name__
        raise RuntimeError(f"attention of {captured} layers was captured in {name}, which has {expected}")
