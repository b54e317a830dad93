"""What second opinion reads of a text: one pass of the victim, and one pass of a public encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lightning_backdoor.batch import Batch, Victim, pad, token_ids
from lightning_backdoor.defenses.readout_attention import readout_attention
from lightning_backdoor.errors import InputError
from lightning_backdoor.language.public_encoder import PublicEncoder, load_encoder
from lightning_backdoor.models.captures import shared
from lightning_backdoor.models.config_file import STATEMENT
from lightning_backdoor.models.readout import readout_positions
from lightning_backdoor.models.readout_only import readout_only

TextPart = Literal["gap", "delta", "entropy"]
SetPart = Literal["text", "readout", "mean"]

#: shares of the depth: upper half and the layer below, for companion and delta; layers of F; layers of FM.
UPPER, READOUT, MEAN = (1 / 2, 2 / 3, 5 / 6, 1), (2 / 3, 5 / 6, 1), (1 / 3, 1 / 2, 2 / 3, 5 / 6)
#: share of a state by which two passes of one network may differ in float32.
ROUNDING = 1e-5


class Read(NamedTuple):
    """What is read of some texts; tensors are (1 or layers, texts, size), float64 where the device has it.

    Attributes:
        logits: the victim's.
        public: the features of the companion.
        delta: the states of which delta takes the distance; no layers where it does not.
        entropy: of the readout token's attention; of size 0 where it is not read.
        readout: states of the readout token, of which directions are taken; no layers where they are not.
        mean: means of the states of all tokens, of which directions are taken; no layers where they are not.
    """

    logits: Tensor
    public: Tensor
    delta: Tensor
    entropy: Tensor
    readout: Tensor
    mean: Tensor

    @property
    def of_set(self) -> Tensor:
        """The states of which directions are taken, those of ``readout`` and then those of ``mean``."""
        return torch.cat([self.readout, self.mean])

    @property
    def predictions(self) -> Tensor:
        """The victim's predictions, (texts,), int64."""
        return self.logits[0].argmax(dim=1)


class Reader(NamedTuple):
    """Reads texts by one pass of a victim and one of a public encoder.

    Attributes:
        text_parts: see :class:`lightning_backdoor.defenses.SecondOpinion`, also for the others.
        set_parts: see there.
        encoder: see there.
        base_known: see there.
    """

    text_parts: Sequence[TextPart]
    set_parts: Sequence[SetPart]
    encoder: str | None
    base_known: bool | None

    def read(self, victim: Victim, batch: Batch) -> Read:
        """Reads the texts of a batch.

        Raises:
            InputError: the encoder cannot be loaded or is not the victim's base, or the attention cannot be read.
        """
        network, dtype = victim.network, float_on(victim.network.device)
        layers: int = network.config.num_hidden_layers
        of_delta = depths(layers, UPPER) if "delta" in self.text_parts else ()
        of_readout = depths(layers, READOUT) if "readout" in self.set_parts else ()
        of_mean = depths(layers, MEAN) if "mean" in self.set_parts else ()
        at = tuple(sorted({*of_delta, *of_readout}))
        inputs, attention = (batch["input_ids"], batch["attention_mask"]), "entropy" in self.text_parts
        try:
            found = shared(victim_states, network, *inputs, readout=at, mean=of_mean, attention=attention)
        except InputError as error:
            parts = ", ".join(part for part in self.text_parts if part != "entropy")
            raise InputError("text_parts", f"{error.field}: {error.problem}", f"leave entropy out: {parts}") from error
        states = found.readout.to(dtype)
        delta, readout = (states[[at.index(layer) for layer in layers_of]] for layers_of in (of_delta, of_readout))
        public = self._public(victim, batch)
        if of_delta and self._is_base(victim):
            if public.readout.shape != delta.shape:
                problem = f"{self._name(victim)!r} has states of another shape than the victim's"
                raise InputError("base_known", problem, "give false")
            difference = delta - public.readout.to(dtype)
            same = difference.norm(dim=2, keepdim=True) <= ROUNDING * delta.norm(dim=2, keepdim=True)
            delta = difference.masked_fill(same, 0.0)  # layers that were not trained would tell of rounding alone
        logits, entropy, mean = found.logits[None].to(dtype), found.entropy[None].to(dtype), found.mean.to(dtype)
        return Read(logits, _flat(public.mean).to(dtype), delta, entropy, readout, mean)

    def read_public(self, victim: Victim, batch: Batch) -> Tensor:
        """The features of the companion alone, (1, texts, size)."""
        return _flat(self._public(victim, batch).mean).to(float_on(victim.network.device))

    def _public(self, victim: Victim, batch: Batch) -> EncoderStates:
        readout = UPPER if "delta" in self.text_parts and self._is_base(victim) else ()
        return encoder_states(victim, batch["text"], self._name(victim), UPPER, readout)

    def _name(self, victim: Victim) -> str:
        if self.encoder is not None:
            return self.encoder
        names = _recorded_bases(victim)
        if not names:
            raise InputError("encoder", "the victim does not say which model it was fine-tuned from", "name the model")
        return names[-1]

    def _is_base(self, victim: Victim) -> bool:
        if self.base_known is not None:
            return self.base_known
        return self._name(victim) in _recorded_bases(victim)


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


@lru_cache(maxsize=1)
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
    return torch.stack([states[layer][rows, positions] for layer in layers]) if layers else states[0][None, :, 0][:0]


def _means(states: Sequence[Tensor], layers: Sequence[int], attention_mask: Tensor) -> Tensor:
    share = (attention_mask / attention_mask.sum(dim=1, keepdim=True))[:, None].to(states[0].dtype)
    return (
        torch.stack([(share @ states[layer]).squeeze(1) for layer in layers]) if layers else states[0][None, :, 0][:0]
    )


def float_on(device: torch.device) -> torch.dtype:
    """The precision of sums and distances; Apple's GPUs have no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def _flat(states: Tensor) -> Tensor:
    """States of all layers side by side, (1, texts, layers times hidden size)."""
    return states.transpose(0, 1).flatten(1)[None]


def _recorded_bases(victim: Victim) -> list[str]:
    """Names of the model that a victim was fine-tuned from, as its checkpoint and its exported folder state them."""
    statement = getattr(victim.network.config, STATEMENT, None)
    stated = statement.get("base_model") if isinstance(statement, Mapping) else None
    names = [getattr(victim, "hparams", {}).get("model"), stated]
    return [name for name in names if isinstance(name, str)]
