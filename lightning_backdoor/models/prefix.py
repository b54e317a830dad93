"""Prefix tuning (arXiv 2101.00190) through peft: trained keys and values before the text, in a frozen network."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from lightning_backdoor.errors import InputError


class Prefix(nn.Module):
    """The trained keys and values of a prefix, for every layer, from the encoder of peft.

    Args:
        length: number of keys, and of values, per layer.
        layers: number of layers.
        heads: number of heads of keys and values.
        head_size: size of a head.
        hidden: hidden units of the two-layer network that computes keys and values from a trained embedding, which is
            trained with it, as in section 4.3 of the paper; None trains keys and values directly.

    >>> Prefix(length=5, layers=2, heads=3, head_size=4, hidden=None)(batch=7)[1][0].shape  # keys of the second layer
    torch.Size([7, 3, 5, 4])
    """

    def __init__(self, length: int, layers: int, heads: int, head_size: int, hidden: int | None) -> None:
        from peft import PrefixEncoder, PrefixTuningConfig

        super().__init__()
        self.shape = length, layers, 2, heads, head_size
        config = PrefixTuningConfig(
            num_virtual_tokens=length,
            token_dim=heads * head_size,
            num_layers=layers,
            encoder_hidden_size=hidden or 0,  # not read without a projection
            prefix_projection=hidden is not None,
        )
        self.encoder = PrefixEncoder(config)  # type: ignore[no-untyped-call]

    def forward(self, batch: int) -> list[tuple[Tensor, Tensor]]:
        """Keys and values per layer, each (batch, heads, length, head size)."""
        device = next(self.parameters()).device
        encoded: Tensor = self.encoder(torch.arange(self.shape[0], device=device))
        pairs = encoded.view(self.shape).permute(1, 2, 3, 0, 4)[:, :, None]
        return [(keys.expand(batch, -1, -1, -1), values.expand(batch, -1, -1, -1)) for keys, values in pairs]


def insert_prefix(network: PreTrainedModel, length: int, hidden: int | None) -> None:
    """Puts trained keys and values before those of the text in every layer, in place; freezes all other weights.

    peft's own model class would be wrapped around the network and hide its parts from defenses, so a hook gives the
    prefix to the network's base model instead. The tokens of the text keep their positions, where peft moves them by
    the length of the prefix.

    Args:
        network: a classifier.
        length: number of keys, and of values, per layer.
        hidden: see :class:`Prefix`.

    Raises:
        InputError: the attention of the architecture takes no keys and values beside those of the text.
    """
    base, config = network.base_model, network.config.get_text_config()
    if "past_key_values" not in inspect.signature(base.forward).parameters:
        architecture = network.config.model_type
        raise InputError("method", f"{architecture!r} takes no keys and values before a text", "give lora or adapter")
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    network.requires_grad_(False)
    prefix = Prefix(length, config.num_hidden_layers, heads, head_size, hidden)
    base.add_module("prefix", prefix.to(next(base.parameters())).train(network.training))
    base.register_forward_pre_hook(_give_prefix, with_kwargs=True)


def _give_prefix(base: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Forward pre-hook of the base model: the prefix as keys and values of earlier tokens, which all tokens see."""
    if args:
        kwargs, args = {**kwargs, "input_ids": args[0]}, ()
    given = kwargs["input_ids"] if kwargs.get("input_ids") is not None else kwargs["inputs_embeds"]
    batch, length = given.shape[:2]
    mask = kwargs.get("attention_mask")
    mask = given.new_ones((batch, length), dtype=torch.long) if mask is None else mask
    if kwargs.get("position_ids") is None:
        kwargs["position_ids"] = _positions(base, kwargs.get("input_ids"), mask)
    kwargs["attention_mask"] = torch.cat([mask.new_ones((batch, base.prefix.shape[0])), mask], dim=1)
    kwargs["past_key_values"] = DynamicCache(base.prefix(batch))
    return args, kwargs


def _positions(base: Any, input_ids: Tensor | None, mask: Tensor) -> Tensor:
    """The positions that the network would give the tokens without a prefix."""
    of_ids = getattr(getattr(base, "embeddings", None), "create_position_ids_from_input_ids", None)
    if of_ids is not None and input_ids is not None:  # RoBERTa counts from its padding token
        positions: Tensor = of_ids(input_ids, base.embeddings.padding_idx)
        return positions
    return torch.arange(mask.shape[1], device=mask.device)[None]
