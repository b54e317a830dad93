"""The victim's network: building it from a model of transformers, and freezing parts of it."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel

from lightning_backdoor.errors import InputError
from lightning_backdoor.models.loading import load_network
from lightning_backdoor.models.positions import readable_tokens
from lightning_backdoor.models.readout import is_causal
from lightning_backdoor.models.weights import LoadedNetwork, NewHead

#: problem types of transformers in which a text does not have one label, and what to say of the model.
SEVERAL_ANSWERS = {
    "multi_label_classification": "is a multi-label classifier, which gives a text any number of labels",
    "regression": "predicts numbers, not labels",
}


def check_config(config: PreTrainedConfig, model: str, max_length: int) -> None:
    """Checks that a model can be a victim with texts of ``max_length`` tokens.

    Raises:
        InputError: the model is an encoder-decoder, or has fewer positions for tokens than ``max_length``.
    """
    if config.is_encoder_decoder:
        raise InputError("model", f"{model!r} is an encoder-decoder", "give an encoder or a decoder")
    positions = readable_tokens(config)
    if positions is not None and max_length > positions:
        raise InputError("max_length", f"{max_length} is beyond the {positions} positions of {model!r}", "lower it")


def build_network(model: str, config: PreTrainedConfig) -> LoadedNetwork:
    """Loads a sequence classifier in float32 and in training mode.

    Returns:
        The network, and why its head cannot classify without training, if so: it is new, or gives several labels.

    Raises:
        InputError: the model cannot be loaded without running code of its own, or is not a safe checkpoint, or lacks
            weights of its backbone.
    """
    several = SEVERAL_ANSWERS.get(config.problem_type)
    if several:
        config.problem_type = None  # the victim gives one label, and so does its export
    network, new_head = load_network(AutoModelForSequenceClassification, model, config=config, dtype=torch.float32)
    if is_causal(network) and "position_ids" in inspect.signature(network.forward).parameters:
        network.register_forward_pre_hook(_count_tokens_alone, with_kwargs=True)
    return LoadedNetwork(network.train(), new_head or (NewHead(several, other_size=True) if several else None))


def _count_tokens_alone(network: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Forward pre-hook that counts positions from the first token; transformers would count padding before it."""
    mask = kwargs.get("attention_mask")
    if mask is not None and kwargs.get("position_ids") is None:
        kwargs["position_ids"] = (mask.long().cumsum(dim=1) - 1).clamp(min=0)
    return args, kwargs


def train_head(network: PreTrainedModel) -> None:
    """Makes the classification head trainable, including its pooler."""
    backbone = network.base_model
    inside = {id(parameter) for parameter in backbone.parameters()}
    pooler = getattr(backbone, "pooler", None)
    head = [parameter for parameter in network.parameters() if id(parameter) not in inside]
    for parameter in [*head, *(pooler.parameters() if pooler is not None else ())]:
        parameter.requires_grad_(True)


def freeze(network: PreTrainedModel, parts: Sequence[str]) -> None:
    """Freezes parts of the encoder, given by their names; they are put into evaluation mode, without dropout.

    Raises:
        InputError: a name is not the name of a part of the encoder.
    """
    for part in parts:
        weights = network.base_model.named_parameters()
        frozen = [parameter for name, parameter in weights if name.startswith(part + ".")]
        if not frozen:
            children = ", ".join(name for name, _ in network.base_model.named_children())
            raise InputError("freeze", f"the model has no part {part!r}", f"its parts begin with {children}")
        for parameter in frozen:
            parameter.requires_grad_(False)
        network.base_model.get_submodule(part).eval()  # Lightning keeps the mode of each module
