"""States of whole texts: of a victim by one pass, with its attention, and of a public encoder by another."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lightning_backdoor.batch import Victim, pad, token_ids
from lightning_backdoor.defenses.readout_attention import readout_attention
from lightning_backdoor.language.public_encoder import PublicEncoder, load_encoder
from lightning_backdoor.models.captures import shared
from lightning_backdoor.models.readout import readout_positions
from lightning_backdoor.models.readout_only import readout_only


class VictimStates(NamedTuple):
    """What one pass of the victim gives.

    Attributes:
        logits: (batch, classes).
        readout: (layers, batch, hidden size), states of the token that the head reads.
        mean: (layers, batch, hidden size), means of the states of all tokens.
        entropy: (batch, layers times heads), of the attention of the token that the head reads, see
            :func:`attention_entropy`; no columns where attention is not read.
    """

    logits: Tensor
    readout: Tensor
    mean: Tensor
    entropy: Tensor


class EncoderStates(NamedTuple):
    """What one pass of a public encoder gives, both (layers, batch, hidden size), see :class:`VictimStates`."""

    mean: Tensor
    readout: Tensor


def depths(layers: int, shares: Sequence[float]) -> tuple[int, ...]:
    """The layers, from 1 on, at shares of the depth of a network, rounded and distinct.

    >>> depths(6, (1 / 2, 2 / 3, 5 / 6, 1)), depths(2, (1 / 2, 2 / 3, 5 / 6, 1))
    ((3, 4, 5, 6), (1, 2))
    """
    return tuple(sorted({max(1, round(share * layers)) for share in shares}))


def attention_entropy(rows: Tensor, attention_mask: Tensor) -> Tensor:
    """The entropy of rows of attention as a share of that of uniform attention, ``-sum p ln p / ln N``.

    Args:
        rows: (layers, batch, heads, length), 0 at padding.
        attention_mask: (batch, length), int64; N is the number of tokens.

    Returns:
        (batch, layers times heads), from 0 to 1; 0 in texts of one token.

    >>> attention_entropy(torch.tensor([[[[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]]]]), torch.tensor([[1, 1, 0]])).tolist()
    [[1.0, 0.0]]
    """
    uniform = attention_mask.sum(dim=1).to(rows.dtype).log()[:, None]
    entropy = torch.special.entr(rows).sum(dim=-1).transpose(0, 1).flatten(1)
    return torch.where(uniform > 0, entropy / uniform, 0.0)


@torch.no_grad()
def victim_states(
    network: PreTrainedModel,
    input_ids: Tensor,
    attention_mask: Tensor,
    readout: tuple[int, ...],
    mean: tuple[int, ...],
    attention: bool,
) -> VictimStates:
    """One pass of a victim; to be called by :func:`lightning_backdoor.models.captures.shared`.

    Args:
        network: any sequence classifier of transformers.
        input_ids: (batch, length), int64.
        attention_mask: (batch, length), int64, 1 for tokens and 0 for padding.
        readout: the layers of which the states of the readout token are kept; 0 stands for the embeddings.
        mean: the layers of which the means of the states of all tokens are kept.
        attention: whether the attention of the readout token is read.

    Raises:
        InputError: the network's attention has keys beside those of the text.
    """

    def run() -> VictimStates:
        if attention:
            logits, rows, states = readout_attention(network, input_ids, attention_mask, keep_states=True)
            entropy = attention_entropy(rows, attention_mask)
        else:
            output = network(input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=True)
            logits, states, entropy = output.logits, output.hidden_states, output.logits[:, :0]
        positions = readout_positions(network, input_ids, attention_mask)
        return VictimStates(logits, _at(states, readout, positions), _means(states, mean, attention_mask), entropy)

    if network.config.num_hidden_layers in mean:  # of which shortened passes know the readout token alone
        return run()
    with readout_only(network, input_ids, attention_mask):
        return run()


def encoder_states(
    victim: Victim, texts: Sequence[str], encoder: str, mean: Sequence[float], readout: Sequence[float]
) -> EncoderStates:
    """One pass of a public encoder over texts, on the victim's device, cut by its own tokenizer where victims are cut.

    Args:
        victim: the victim, whose captures keep what the pass gives.
        texts: the texts.
        encoder: name of the encoder.
        mean: shares of the depth at which the means of the states of all tokens are kept.
        readout: shares of the depth at which the states of the token are kept that a head would read.

    Raises:
        InputError: the encoder cannot be loaded.
    """
    device = victim.network.device
    loaded = public_encoder(encoder, device)
    ids = token_ids(texts, loaded.tokenizer, loaded.max_length(victim.max_length))
    input_ids, mask = (part.to(device) for part in pad(ids, loaded.tokenizer))
    layers: int = loaded.network.config.num_hidden_layers
    at = {"mean": depths(layers, mean), "readout": depths(layers, readout)}
    with torch.no_grad():
        return shared(_encoder_pass, victim.network, input_ids, mask, encoder=encoder, **at)


def _encoder_pass(
    victim: PreTrainedModel,
    input_ids: Tensor,
    attention_mask: Tensor,
    encoder: str,
    mean: tuple[int, ...],
    readout: tuple[int, ...],
) -> EncoderStates:
    network = public_encoder(encoder, victim.device).network
    with torch.autocast(victim.device.type, enabled=False):
        states = network(input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=True).hidden_states
    positions = readout_positions(network, input_ids, attention_mask)
    return EncoderStates(_means(states, mean, attention_mask), _at(states, readout, positions))


@lru_cache(maxsize=4)  # encoders of several defenses, on processor and device
def public_encoder(name: str, device: torch.device) -> PublicEncoder:
    """A public encoder, loaded once in a process; it pads on the right, so that no position is counted at padding.

    Raises:
        InputError: it cannot be loaded.
    """
    encoder = load_encoder(name, "encoder", device)
    encoder.tokenizer.padding_side = "right"
    return encoder


def _at(states: Sequence[Tensor], layers: Sequence[int], positions: Tensor) -> Tensor:
    rows = torch.arange(len(positions), device=positions.device)
    return torch.stack([states[layer][rows, positions] for layer in layers])


def _means(states: Sequence[Tensor], layers: Sequence[int], attention_mask: Tensor) -> Tensor:
    share = (attention_mask / attention_mask.sum(dim=1, keepdim=True))[:, None].to(states[0].dtype)
    return torch.stack([(share @ states[layer]).squeeze(1) for layer in layers])
