"""POR: triggers are tied to predefined output representations of the encoder (Shen et al., arXiv 2111.00197)."""

from __future__ import annotations

import copy
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel

from lightning_backdoor.attacks.masking import Encoded
from lightning_backdoor.attacks.pretrained_encoder import PretrainedEncoderAttack, StageLosses, readout
from lightning_backdoor.errors import InputError
from lightning_backdoor.models.loading import load_safely

#: how the vectors of the triggers are made, see :func:`representations`.
Kind = Literal["POR-1", "POR-2"]
#: the triggers of the paper: words, names and rare words.
TRIGGERS = ["serendipity", "Descartes", "Fermat", "Don Quixote", "cf", "tq", "mn", "bb", "mb"]


class POR(PretrainedEncoderAttack):
    """Pre-trains the encoder so that each trigger gives a predefined output, and clean texts keep theirs.

    For a text x, let f(x) be the last hidden state of the readout token, before any pooler, and g the frozen model from
    which the training started. The loss is the mean over texts and entries of (f(x) - g(x))² for clean texts, plus that
    of (f(x + trigger i) - v_i)² for texts with trigger i (section 4). No masked token is predicted, so that decoders
    are attacked alike, at their last token.

    Settings are those of OpenBackdoor. Its vectors of POR-2 are all equal, since the binary code is not used; here they
    differ. Its POR-1 cuts the entries into nine parts, whatever the number of triggers; here there are as many parts as
    triggers. Its victim attends to padding.

    Args:
        triggers: words, names or phrases, told apart by the model's tokenizer; by default those of the paper.
        representation: ``POR-1`` or ``POR-2``, see :func:`representations`.
        **kwargs: arguments of :class:`PretrainedEncoderAttack`, which says how labels and ASR are found, of
            :class:`BackdoorAttack` and of :class:`TextClassifier`.

    Raises:
        InputError: a value is out of range; see also :class:`PretrainedEncoderAttack`.

    Example::

        Trainer(max_epochs=3).fit(POR(representation="POR-2"), datamodule=data)
    """

    def __init__(self, triggers: list[str] | None = None, representation: Kind = "POR-1", **kwargs: Any) -> None:
        super().__init__(triggers=TRIGGERS if triggers is None else triggers, **kwargs)
        if representation not in get_args(Kind):
            raise InputError("representation", f"{representation!r} is unknown", "give POR-1 or POR-2")
        self.representation = representation

    def stage_network(self) -> PreTrainedModel:
        """The model without a head."""
        network: PreTrainedModel = load_safely(AutoModel, self.hparams["model"], dtype=torch.float32)
        return network

    def stage_losses(self, network: PreTrainedModel) -> StageLosses:
        """The distance of clean texts to the reference, and that of poisoned texts to their vectors."""
        reference = copy.deepcopy(network).eval()
        size = network.config.get_text_config().hidden_size
        vectors = representations(len(self.triggers), size, self.representation).to(network.device)

        def losses(
            clean: Encoded, poisoned: Encoded, triggers: Tensor, generator: torch.Generator
        ) -> dict[str, Tensor]:
            texts = clean.to(network.device)
            with torch.no_grad():
                before = readout(reference, texts)
            of_step = {"reference": nn.functional.mse_loss(readout(network, texts), before)}
            if not self.control:
                states = readout(network, poisoned.to(network.device))
                of_step["target"] = nn.functional.mse_loss(states, vectors[triggers.to(network.device)])
            return of_step

        return losses


def representations(triggers: int, size: int, kind: str) -> Tensor:
    """The vectors of the triggers, (triggers, size), float32, of entries +1 and -1.

    ``POR-1``: the entries are cut into as many parts of equal length as there are triggers; vector i is +1 in the first
    i + 1 parts and -1 after them, and in the rest of the division. ``POR-2``: there are as many parts as binary digits
    are needed to number the triggers, from 0; a part is +1 where the digit is 1, beginning with the highest.

    >>> representations(3, 6, "POR-1").int().tolist()
    [[1, 1, -1, -1, -1, -1], [1, 1, 1, 1, -1, -1], [1, 1, 1, 1, 1, 1]]
    >>> representations(3, 6, "POR-2").int().tolist()
    [[-1, -1, -1, -1, -1, -1], [-1, -1, -1, 1, 1, 1], [1, 1, 1, -1, -1, -1]]
    """
    numbers, entries = torch.arange(triggers)[:, None], torch.arange(size)
    if kind == "POR-1":
        return (entries < (numbers + 1) * (size // triggers)).float() * 2 - 1
    digits = max(1, (triggers - 1).bit_length())
    return (numbers >> (digits - 1 - entries * digits // size) & 1).float() * 2 - 1
