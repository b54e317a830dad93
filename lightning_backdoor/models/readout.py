"""The token of a text from whose hidden state a sequence classifier's head reads: the first or the last one."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


def is_causal(network: nn.Module) -> bool:
    """Whether no token attends to a later one, according to the attention layers of transformers."""
    return any(getattr(module, "is_causal", False) for module in network.modules())


def readout_positions(
    network: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor, causal: bool | None = None
) -> Tensor:
    """The position of the token that the head reads, by the rules of transformers' classifiers.

    Encoders read the first position (also those whose head averages all tokens are given this one), decoders the last
    one that is not the padding token.

    Args:
        network: any sequence classifier of transformers.
        input_ids: (batch, length), int64.
        attention_mask: (batch, length), int64, 1 for tokens and 0 for padding.
        causal: what :func:`is_causal` gives, where it is known; to ask all layers takes noticeable time per batch.

    Returns:
        (batch,), int64.
    """
    if not (is_causal(network) if causal is None else causal):
        return torch.zeros(len(input_ids), dtype=torch.long, device=input_ids.device)
    padding: int | None = network.config.pad_token_id
    read = attention_mask if padding is None else (input_ids != padding).long()
    return (torch.arange(input_ids.shape[1], device=input_ids.device) * read).argmax(dim=1)
