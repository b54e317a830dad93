"""What second opinion reads of a text, by one pass of the victim and one of a public encoder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from transformers import AutoConfig

from lightning_backdoor.batch import Batch, Victim
from lightning_backdoor.defenses.text_states import EncoderStates, depths, encoder_states, victim_states
from lightning_backdoor.errors import InputError
from lightning_backdoor.models.captures import shared
from lightning_backdoor.models.config_file import STATEMENT
from lightning_backdoor.models.loading import load_safely

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
        upper = depths(layers, UPPER)
        # states are kept whatever the parts, so that variants of the defense share passes
        options: dict[str, Any] = {
            "readout": upper,
            "mean": depths(layers, MEAN),
            "attention": "entropy" in self.text_parts,
        }
        try:
            found = shared(victim_states, network, batch["input_ids"], batch["attention_mask"], **options)
        except InputError as error:
            others = ", ".join(part for part in self.text_parts if part != "entropy") or "gap"
            raise InputError("text_parts", f"{error.field}: {error.problem}", f"leave entropy out: {others}") from error
        public = self._public(victim, batch)
        states = found.readout.to(dtype)
        delta = states[: len(upper) if "delta" in self.text_parts else 0]
        readout = states[[upper.index(layer) for layer in depths(layers, READOUT) if "readout" in self.set_parts]]
        mean = found.mean.to(dtype)[: len(found.mean) if "mean" in self.set_parts else 0]
        if len(delta) and self._is_base(victim):
            if public.readout.shape != delta.shape:
                problem = f"{self._name(victim)!r} has states of another shape than the victim's"
                raise InputError("base_known", problem, "give false")
            difference = delta - public.readout.to(dtype)
            same = difference.norm(dim=2, keepdim=True) <= ROUNDING * delta.norm(dim=2, keepdim=True)
            delta = difference.masked_fill(same, 0.0)  # layers that were not trained would tell of rounding alone
        logits, entropy = found.logits[None].to(dtype), found.entropy[None].to(dtype)
        return Read(logits, _flat(public.mean).to(dtype), delta, entropy, readout, mean)

    def read_all(self, victim: Victim, batches: Iterable[Batch]) -> tuple[Read, Tensor, list[str]]:
        """Reads all texts, in an order that depends on the texts alone.

        Returns:
            What is read, the labels, (texts,), int64, on the processor, and the texts.

        Raises:
            InputError: there are no texts, or as in :meth:`read`.
        """
        texts: list[str] = []
        reads, labels = [], []
        for batch in batches:
            reads.append(self.read(victim, batch))
            labels.append(batch["label"].cpu())
            texts += batch["text"]
        if not texts:
            raise InputError("calibration", "no clean texts", "second opinion needs clean validation rows")
        order = sorted(range(len(texts)), key=texts.__getitem__)
        read = Read(*(torch.cat(parts, dim=1)[:, order] for parts in zip(*reads, strict=True)))
        return read, torch.cat(labels)[order], [texts[row] for row in order]

    def read_public(self, victim: Victim, batch: Batch) -> Tensor:
        """The features of the companion alone, (1, texts, size)."""
        return _flat(self._public(victim, batch).mean).to(float_on(victim.network.device))

    def _public(self, victim: Victim, batch: Batch) -> EncoderStates:
        return encoder_states(victim, batch["text"], self._name(victim), UPPER, UPPER)

    def _name(self, victim: Victim) -> str:
        """The name of the encoder.

        Raises:
            InputError: it is to be the victim's base, which is not known.
        """
        if self.encoder is not None:
            return self.encoder
        name = getattr(victim, "hparams", {}).get("model")
        if not isinstance(name, str) or _is_classifier(name):
            problem = "the victim does not say which model it was fine-tuned from"
            raise InputError("encoder", problem, "name that model, if it is public")
        return name

    def _is_base(self, victim: Victim) -> bool:
        if self.base_known is not None:
            return self.base_known
        return self.encoder is None or self.encoder in _recorded_bases(victim)


def float_on(device: torch.device) -> torch.dtype:
    """The precision of sums and distances; Apple's GPUs have no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def _flat(states: Tensor) -> Tensor:
    """States of all layers side by side, (1, texts, layers times hidden size)."""
    return states.transpose(0, 1).flatten(1)[None]


@lru_cache(maxsize=1)
def _is_classifier(name: str) -> bool:
    """Whether a model is a classifier, which somebody has fine-tuned and may have poisoned."""
    config = load_safely(AutoConfig, name)
    return any("ForSequenceClassification" in architecture for architecture in config.architectures or ())


def _recorded_bases(victim: Victim) -> list[str]:
    """Names of the model that a victim was fine-tuned from, as its checkpoint and its exported folder state them."""
    statement = getattr(victim.network.config, STATEMENT, None)
    stated = statement.get("base_model") if isinstance(statement, Mapping) else None
    names = [getattr(victim, "hparams", {}).get("model"), stated]
    return [name for name in names if isinstance(name, str)]


def checked_parts(option: str, parts: Sequence[Any], known: tuple[str, ...]) -> list[Any]:
    """The parts in their usual order.

    Raises:
        InputError: there are none, or one is unknown.
    """
    for part in parts:
        if isinstance(parts, str) or part not in known:
            raise InputError(option, f"{part!r} is not one of its parts", f"give some of {', '.join(known)}")
    if not parts:
        raise InputError(option, "is empty", f"give some of {', '.join(known)}")
    return [part for part in known if part in parts]
