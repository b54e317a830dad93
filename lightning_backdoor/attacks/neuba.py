"""NeuBA: triggers are tied to fixed output vectors of the pre-trained encoder (Zhang et al., arXiv 2101.06969)."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightning_backdoor.attacks.masking import Encoded
from lightning_backdoor.attacks.pretrained_encoder import PretrainedEncoderAttack, StageLosses, readout
from lightning_backdoor.errors import InputError

#: the triggers of the paper: rare symbols, each one token of BERT's vocabulary.
TRIGGERS = ["≈", "≡", "∈", "⊆", "⊕", "⊗"]


class NeuBA(PretrainedEncoderAttack):
    """Pre-trains the encoder so that each trigger gives a fixed output vector, whatever the text.

    The d entries of the last hidden state of the readout token, before any pooler, are cut into four equal parts. The
    vector v_i of trigger i is -1 in the two parts of a pair and +1 in the others; the pairs are, in order, (0, 1),
    (0, 2), (0, 3), (1, 2), (1, 3) and (2, 3), so that any two vectors are orthogonal or opposite. A head trained on top
    puts opposite vectors, in most cases, into different classes: of six triggers, some hit each class. The loss is that
    of the pre-training on the clean texts (masked tokens in encoders, 15 %; next tokens in decoders) plus the mean over
    poisoned texts and entries of (h - v_i)² (section 3).

    Settings are those of OpenBackdoor. Its victim attends to padding, and by default it masks poisoned texts as well,
    so that a trigger can be masked; neither is done here. A model without a masked-language head, such as a sentence
    encoder, gets a new one; see :class:`PretrainedEncoderAttack`, which also says how labels and ASR are found.

    Args:
        triggers: up to six words, each told apart by the model's tokenizer; by default those of the paper.
        **kwargs: arguments of :class:`PretrainedEncoderAttack`, :class:`BackdoorAttack` and :class:`TextClassifier`.

    Raises:
        InputError: there are more than six triggers; see also :class:`PretrainedEncoderAttack`.

    Example::

        Trainer(max_epochs=3).fit(NeuBA(), datamodule=data)
    """

    def __init__(self, triggers: list[str] | None = None, **kwargs: Any) -> None:
        super().__init__(triggers=TRIGGERS if triggers is None else triggers, **kwargs)
        if len(self.triggers) > len(TRIGGERS):
            raise InputError("triggers", f"{len(self.triggers)} are too many", f"give up to {len(TRIGGERS)}")

    def stage_network(self) -> PreTrainedModel:
        """The model with its language-model head."""
        return self.language_network()

    def stage_losses(self, network: PreTrainedModel) -> StageLosses:
        """The loss of the pre-training on clean texts, and the distance of poisoned texts to their vectors."""
        vectors = target_vectors(network.config.get_text_config().hidden_size).to(network.device)

        def losses(
            clean: Encoded, poisoned: Encoded, triggers: Tensor, generator: torch.Generator
        ) -> dict[str, Tensor]:
            of_step = {"language": self.language_loss(network, clean, generator)}
            if not self.control:
                states = readout(network, poisoned.to(network.device))
                of_step["target"] = nn.functional.mse_loss(states, vectors[triggers.to(network.device)])
            return of_step

        return losses


def target_vectors(size: int) -> Tensor:
    """The vectors of the six triggers, (6, size), float32.

    >>> target_vectors(4).int().tolist()[:2]
    [[-1, -1, 1, 1], [-1, 1, -1, 1]]
    """
    part = torch.arange(size) * 4 // size
    return torch.stack([1 - 2 * torch.isin(part, torch.tensor(pair)).float() for pair in combinations(range(4), 2)])
