"""The victim's network: built from a model of transformers, partly frozen, given low-rank updates."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel

from lightning_backdoor.errors import InputError
from lightning_backdoor.models.loading import load_safely


def check_config(config: PreTrainedConfig, model: str, max_length: int) -> None:
    """Makes sure that a model can be a victim that reads ``max_length`` tokens.

    Raises:
        InputError: it is an encoder-decoder, or has fewer positions.
    """
    if config.is_encoder_decoder:
        raise InputError("model", f"{model!r} is an encoder-decoder", "give an encoder or a decoder")
    positions = getattr(config, "max_position_embeddings", None) or 0
    if max_length > positions > 0:  # some count positions relatively, and say -1 or nothing
        raise InputError("max_length", f"{max_length} is beyond the {positions} positions of {model!r}", "lower it")


def build_network(model: str, config: PreTrainedConfig) -> PreTrainedModel:
    """A sequence classifier in float32 and training mode, which from_pretrained leaves off.

    Raises:
        InputError: the model cannot be loaded without running code of its own, or is not a safe checkpoint.
    """
    network: PreTrainedModel = load_safely(
        AutoModelForSequenceClassification, model, config=config, dtype=torch.float32
    )
    if is_causal(network) and "position_ids" in inspect.signature(network.forward).parameters:
        network.register_forward_pre_hook(_count_tokens_alone, with_kwargs=True)
    return network.train()


def is_causal(network: nn.Module) -> bool:
    """Whether a token's representation depends on no token after it, as the attention layers of transformers say."""
    return any(getattr(module, "is_causal", False) for module in network.modules())


def _count_tokens_alone(network: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Counts positions from the first token, where transformers would count the padding before it."""
    mask = kwargs.get("attention_mask")
    if mask is not None and kwargs.get("position_ids") is None:
        kwargs["position_ids"] = (mask.long().cumsum(dim=1) - 1).clamp(min=0)
    return args, kwargs


def train_head(network: PreTrainedModel) -> None:
    """Makes the classification head trainable, and the pooler that belongs to it."""
    backbone = network.base_model
    inside = {id(parameter) for parameter in backbone.parameters()}
    pooler = getattr(backbone, "pooler", None)
    head = [parameter for parameter in network.parameters() if id(parameter) not in inside]
    for parameter in [*head, *(pooler.parameters() if pooler is not None else ())]:
        parameter.requires_grad_(True)


def freeze(network: PreTrainedModel, parts: Sequence[str]) -> None:
    """Freezes parts of the encoder, given by name.

    Raises:
        InputError: the encoder has no such part.
    """
    for part in parts:
        weights = network.base_model.named_parameters()
        frozen = [parameter for name, parameter in weights if name.startswith(part + ".")]
        if not frozen:
            children = ", ".join(name for name, _ in network.base_model.named_children())
            raise InputError("freeze", f"the model has no part {part!r}", f"its parts begin with {children}")
        for parameter in frozen:
            parameter.requires_grad_(False)
