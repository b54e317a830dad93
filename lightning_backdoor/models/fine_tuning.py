"""Fine-tuning a network of transformers: its tokenizer, AdamW under a linear schedule, and its export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    get_linear_schedule_with_warmup,
)

from lightning_backdoor.errors import InputError
from lightning_backdoor.models.loading import load_safely
from lightning_backdoor.models.lora import insert_lora, merge_lora


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model, padding on the right, with the end-of-text token where it has no padding token.

    On the left, the positions of encoders that count them, as BERT does, would depend on the other texts of a batch.

    Raises:
        InputError: it cannot be loaded.
    """
    tokenizer: PreTrainedTokenizerBase = load_safely(AutoTokenizer, name)
    tokenizer.padding_side = "right"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


class FineTunedNetwork(LightningModule):
    """A network of transformers with its tokenizer: the base of the modules that fine-tune one.

    A subclass takes ``model``, ``learning_rate``, ``warmup`` and ``lora_rank``, calls ``save_hyperparameters`` in its
    constructor, and builds ``network`` in ``configure_model``, so that making the module loads nothing.

    Attributes:
        network: built by ``configure_model``.
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
        """The model's configuration, without its weights; ``kwargs`` replace values of it.

        Raises:
            InputError: it cannot be loaded.
        """
        config: PreTrainedConfig = load_safely(AutoConfig, self.hparams["model"], **kwargs)
        return config

    def insert_lora(self) -> None:
        """Inserts low-rank updates of rank ``lora_rank`` and weight 2 into the network, where a rank is given."""
        rank: int | None = self.hparams["lora_rank"]
        if rank is not None:
            insert_lora(self.network, rank, alpha=2 * rank)

    def adamw_with_linear_schedule(
        self, parameters: list[Any], fused: bool | None = None, **options: Any
    ) -> OptimizerLRSchedulerConfig:
        """AdamW, with linear warm-up and decay over all steps of the run, accumulation and devices counted in.

        Args:
            parameters: tensors or parameter groups.
            fused: as torch's AdamW takes it.
            **options: further arguments of torch's AdamW.

        Raises:
            InputError: the trainer sets no end.
        """
        optimizer = torch.optim.AdamW(parameters, lr=self.hparams["learning_rate"], fused=fused, **options)
        steps = self.trainer.estimated_stepping_batches
        if steps == float("inf"):
            raise InputError("max_epochs", "a linear schedule needs an end", "give the trainer max_epochs or max_steps")
        steps = int(steps)
        scheduler = get_linear_schedule_with_warmup(optimizer, int(self.hparams["warmup"] * steps), steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def plain_network(self) -> PreTrainedModel:
        """The network for export: with low-rank updates a copy in which they are merged, otherwise the network."""
        return self.network if self.hparams["lora_rank"] is None else merge_lora(self.network)

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes the plain network and the tokenizer as a Hugging Face folder (safetensors)."""
        self.plain_network().save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
