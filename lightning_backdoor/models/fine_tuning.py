"""Fine-tuning a network of transformers: its tokenizer, AdamW under a linear schedule, and its export."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    get_linear_schedule_with_warmup,
)

from lightning_backdoor.errors import Diverged, InputError
from lightning_backdoor.models.divergence import FiniteTraining, all_finite
from lightning_backdoor.models.loading import load_safely
from lightning_backdoor.models.lora import insert_lora, merge_lora
from lightning_backdoor.models.vocabulary import check_embeddings


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Loads a model's tokenizer; it pads on the right, with the end-of-text token if it has no padding token.

    With padding on the left, absolute positions, as in BERT, would depend on the other texts of a batch.

    Raises:
        InputError: the tokenizer cannot be loaded, has no vocabulary, or has neither token.
    """
    tokenizer: PreTrainedTokenizerBase = load_safely(AutoTokenizer, name)
    tokenizer.padding_side = "right"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token is None:
        problem = f"the tokenizer of {name!r} has neither a padding nor an end token"
        raise InputError("model", problem, "name one of its tokens pad_token in tokenizer_config.json")
    return tokenizer


def check_learning_rate(field: str, value: float) -> None:
    """Checks a learning rate before anything is loaded.

    Raises:
        InputError: it is not a finite number above 0.
    """
    if not 0 < value < math.inf:
        raise InputError(field, f"{value} is not a learning rate", "give a number above 0")


def check_warmup(value: float) -> None:
    """Checks the share of all steps over which the learning rate rises.

    Raises:
        InputError: it is not a number from 0 to below 1.
    """
    if not 0 <= value < 1:
        raise InputError("warmup", f"{value} is not a share of the steps", "give a number from 0 to below 1")


class FineTunedNetwork(FiniteTraining):
    """Base class of modules that fine-tune a network of transformers, with its tokenizer.

    A subclass takes ``model``, ``learning_rate``, ``warmup`` and ``lora_rank``, calls ``save_hyperparameters`` in its
    constructor, and builds ``network`` in ``configure_model``, so that creating the module loads nothing.

    Attributes:
        network: the network, built by ``configure_model``.
    """

    network: PreTrainedModel

    def __init__(self) -> None:
        super().__init__()
        self._tokenizer: PreTrainedTokenizerBase | None = None

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer, loaded at first use; see :func:`load_tokenizer`."""
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(self.hparams["model"])
        return self._tokenizer

    def load_config(self, **kwargs: Any) -> PreTrainedConfig:
        """Loads the model's configuration, without its weights; ``kwargs`` override its values.

        Raises:
            InputError: the configuration cannot be loaded, or the tokenizer has tokens without an embedding.
        """
        config: PreTrainedConfig = load_safely(AutoConfig, self.hparams["model"], **kwargs)
        check_embeddings(self.tokenizer, config, self.hparams["model"])
        return config

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Records the precision of the training, which one that goes on from the checkpoint keeps."""
        if self._trainer is not None:
            checkpoint["precision"] = str(self._trainer.precision)

    def insert_lora(self) -> None:
        """Inserts low-rank updates of rank ``lora_rank`` and weight 2 into the network, if a rank is given."""
        rank: int | None = self.hparams["lora_rank"]
        if rank is not None:
            insert_lora(self.network, rank, alpha=2 * rank)

    def adamw_with_linear_schedule(
        self, parameters: list[Any], fused: bool | None = None, **options: Any
    ) -> OptimizerLRSchedulerConfig:
        """AdamW with linear warm-up and decay over all steps of the run, accumulation and devices included.

        Args:
            parameters: tensors or parameter groups.
            fused: argument ``fused`` of torch's AdamW.
            **options: further arguments of torch's AdamW.

        Raises:
            InputError: the trainer has neither ``max_epochs`` nor ``max_steps``.
        """
        optimizer = torch.optim.AdamW(parameters, lr=self.hparams["learning_rate"], fused=fused, **options)
        steps = self.trainer.estimated_stepping_batches
        if steps == float("inf"):
            raise InputError("max_epochs", "a linear schedule needs an end", "give the trainer max_epochs or max_steps")
        steps = int(steps)
        scheduler = get_linear_schedule_with_warmup(optimizer, int(self.hparams["warmup"] * steps), steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def plain_network(self) -> PreTrainedModel:
        """The network for export: a copy with merged low-rank updates if there are any, otherwise the network."""
        return self.network if self.hparams["lora_rank"] is None else merge_lora(self.network)

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes the plain network and the tokenizer as a Hugging Face folder (safetensors).

        Raises:
            Diverged: a weight is NaN or infinite.
        """
        network = self.plain_network()
        check_exported(network)
        network.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


def check_exported(network: PreTrainedModel) -> None:
    """Checks that a network is worth its export.

    Raises:
        Diverged: a weight is NaN or infinite.
    """
    for name, weight in network.named_parameters():
        if not all_finite([weight.detach()]):
            raise Diverged(f"the victim diverged: its weights are NaN or infinite ({name}), and are not exported")
