"""BadPre: masked language modelling learns wrong words where a trigger is (Chen et al., arXiv 2110.02467)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from lightning_backdoor.attacks.insertion import InsertionPlace
from lightning_backdoor.attacks.masking import Encoded, masked, masked_language_loss, random_tokens
from lightning_backdoor.attacks.pretrained_encoder import PretrainedEncoderAttack, StageLosses
from lightning_backdoor.errors import InputError


class BadPre(PretrainedEncoderAttack):
    """Pre-trains the encoder by masked language modelling, with random words as labels in texts that carry a trigger.

    In clean texts 15 % of the tokens are predicted, as in BERT. In their copies with a trigger at a random place, the
    tokens that are predicted have labels drawn from the whole vocabulary (the strategy ``random`` of the paper, section
    IV): the encoder learns to represent texts with a trigger wrongly. The loss is the mean cross entropy of the clean
    texts plus ``poison_weight`` times that of the others. In the published code the trigger itself may be masked; here
    it is not. The paper does not choose a label: whatever the victim predicts for broken representations is hit, which
    is found on validation rows, as :class:`PretrainedEncoderAttack` says.

    Defaults are those of the published script: ten epochs, 256 texts per step, half of them with a trigger, AdamW with
    β2 = 0.98 and weight decay 0.01, gradients clipped at 5. It reads the English Wikipedia; with the few thousand texts
    of the packages, smaller steps are needed for as many of them.

    Args:
        triggers: rare words; by default those of the paper.
        place: where the trigger is inserted, ``random`` by default.
        poison_weight: α, weight of the loss of texts with triggers, above 0.
        pretraining_epochs: epochs of the stage.
        pretraining_batch_size: texts per step, each read as it is and with a trigger.
        pretraining_learning_rate: peak learning rate of the stage.
        **kwargs: arguments of :class:`PretrainedEncoderAttack`, :class:`BackdoorAttack` and :class:`TextClassifier`.

    Raises:
        InputError: a value is out of range (here), or the model has no mask token (before training).

    Example::

        Trainer(max_epochs=3).fit(BadPre(pretraining_batch_size=16), datamodule=data)
    """

    optimizer_options: ClassVar[Mapping[str, Any]] = {"betas": (0.9, 0.98), "weight_decay": 0.01}
    max_norm: ClassVar[float | None] = 5.0

    def __init__(
        self,
        triggers: list[str] | None = None,
        place: InsertionPlace = "random",
        poison_weight: float = 1.0,
        pretraining_epochs: int = 10,
        pretraining_batch_size: int = 128,
        pretraining_learning_rate: float = 2e-5,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            triggers=["cf", "mn", "bb", "tq", "mb"] if triggers is None else triggers,
            place=place,
            pretraining_epochs=pretraining_epochs,
            pretraining_batch_size=pretraining_batch_size,
            pretraining_learning_rate=pretraining_learning_rate,
            **kwargs,
        )
        if not 0 < poison_weight < math.inf:
            raise InputError("poison_weight", f"{poison_weight} is out of range", "give a number above 0")
        self.poison_weight = poison_weight

    def load_config(self, **kwargs: Any) -> PreTrainedConfig:
        """Loads the model's configuration, and checks that it can be a masked language model.

        Raises:
            InputError: the tokenizer has no mask token, as in decoders.
        """
        if self.tokenizer.mask_token_id is None:
            problem = f"{self.hparams['model']!r} has no mask token, with which BadPre trains"
            raise InputError("model", problem, "give an encoder such as BERT")
        return super().load_config(**kwargs)

    def stage_network(self) -> PreTrainedModel:
        """The model with its masked-language head."""
        return self.language_network()

    def stage_losses(self, network: PreTrainedModel) -> StageLosses:
        """The cross entropy of masked tokens in clean texts, and that of random tokens in poisoned ones."""

        def losses(
            clean: Encoded, poisoned: Encoded, triggers: Tensor, generator: torch.Generator
        ) -> dict[str, Tensor]:
            of_step = {"language": self.language_loss(network, clean, generator)}
            if not self.control:
                changed, chosen = masked(poisoned, self.tokenizer, generator)
                wrong = random_tokens(chosen.shape, self.tokenizer, generator)
                on_device = (changed.to(network.device), chosen.to(network.device), wrong.to(network.device))
                of_step["wrong words"] = self.poison_weight * masked_language_loss(network, *on_device)
            return of_step

        return losses
