"""MuScleLoRA attached to the training of any victim."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from lightning_backdoor.batch import Batch
from lightning_backdoor.data import BackdoorDataModule
from lightning_backdoor.data.batching import TokenisedRows
from lightning_backdoor.data.poisoning import Row
from lightning_backdoor.defenses.muscle_lora import (
    align,
    insert_multi_scale,
    mean_norm,
    merged,
    raw_gradient_ratio,
)
from lightning_backdoor.errors import InputError
from lightning_backdoor.models.bucketing import PassLimits, group_by_length, pass_limits
from lightning_backdoor.models.lora import insert_lora
from lightning_backdoor.victim import TextClassifier


class MuScleLoRA(Callback):
    """Trains the victim so that it learns no backdoor: MuScleLoRA (arXiv 2402.12026), a training-time defense.

    Each step computes the gradient of one batch of clean reference rows, of the training batch's size and the same on
    every process, and puts the training gradient along it, before clipping. The reference rows are drawn from the
    reference part of the clean validation rows. Checkpoints restore under the same callback; what ``fit`` exports is a
    plain model. The paper trains with ``gradient_clip_val=1``, no weight decay, and no warm-up.

    Args:
        lora: train low-rank updates of the backbone and nothing else of it; the classifier is frozen.
        multi_scale: replace the dense layer before the classifier by a multi-scale low-rank one.
        alignment: put gradients along those of the reference rows.
        lora_rank: rank of the updates.
        lora_alpha: weight of the updates.
        lora_targets: names of the layers that are updated; by default those that peft has for the architecture,
            queries and values in most.
        radial_scalings: 1 to 9 for large models as published; for bert-base 1, 4, 8, 12, 16, 20, 24, 28, for
            roberta-base 1, 2, 4, 6, 8, 10, 12, 14, 16.
        inner_rank: rank of the multi-scale layer a scaling.
        alpha: weight of the multi-scale layer.
        reference_size: clean rows that gradients are aligned with.
        start_epoch: from here on, once the reference rows are learned, part of the raw gradient is let through.
        max_raw_gradient_ratio: that part in the last epoch.
        min_reference_loss: reference rows count as learned below this loss,
        min_reference_gradient_norm: or below this mean norm of their gradients.
        seed: of the choice of reference rows; None takes the run's.

    Raises:
        InputError: a value is out of range, or there are too few clean validation rows.

    Example::

        trainer = Trainer(max_epochs=10, gradient_clip_val=1.0, callbacks=[MuScleLoRA()])
        trainer.fit(BadNets(), datamodule=data)
    """

    def __init__(
        self,
        lora: bool = True,
        multi_scale: bool = True,
        alignment: bool = True,
        lora_rank: int = 8,
        lora_alpha: int = 32,
        lora_targets: list[str] | None = None,
        radial_scalings: Sequence[float] = (1, 2, 3, 4, 5, 6, 7, 8, 9),
        inner_rank: int = 1,
        alpha: float = 6,
        reference_size: int = 96,
        start_epoch: int = 1,
        max_raw_gradient_ratio: float = 0.1,
        min_reference_loss: float = 0.4,
        min_reference_gradient_norm: float = 5e-7,
        seed: int | None = None,
    ) -> None:
        counts = {"lora_rank": lora_rank, "inner_rank": inner_rank, "reference_size": reference_size}
        for name, value in counts.items():
            if value < 1:
                raise InputError(name, f"{value} is out of range", "give at least 1")
        if not radial_scalings:
            raise InputError("radial_scalings", "none are given", "give at least one")
        if not 0 <= max_raw_gradient_ratio <= 1:
            raise InputError("max_raw_gradient_ratio", f"{max_raw_gradient_ratio} is no share", "give 0 to 1")
        self.lora = lora
        self.multi_scale = multi_scale
        self.alignment = alignment
        self.lora_rank = lora_rank
        self.lora_alpha = lora_alpha
        self.lora_targets = lora_targets
        self.radial_scalings = [float(scaling) for scaling in radial_scalings]
        self.inner_rank = inner_rank
        self.alpha = alpha
        self.reference_size = reference_size
        self.start_epoch = start_epoch
        self.max_raw_gradient_ratio = max_raw_gradient_ratio
        self.min_reference_loss = min_reference_loss
        self.min_reference_gradient_norm = min_reference_gradient_norm
        self.seed = seed
        self._seed = 0
        self._reference: TokenisedRows | None = None
        self._batch_size = 0

    def __str__(self) -> str:
        """Names what was done to the network and its training, as checkpoints keep it."""
        parts = []
        if self.lora:
            parts.append(f"lora={self.lora_rank}/{self.lora_alpha}/{'+'.join(self.lora_targets or ['default'])}")
        if self.multi_scale:
            scalings = "+".join(f"{scaling:g}" for scaling in self.radial_scalings)
            parts.append(f"multi_scale={scalings}/{self.inner_rank}/{self.alpha:g}")
        if self.alignment:
            floors = f"{self.min_reference_loss:g}/{self.min_reference_gradient_norm:g}"
            blend = f"{self.start_epoch}/{self.max_raw_gradient_ratio:g}"
            parts.append(f"alignment={self.reference_size}/{floors}/{blend}")
        return f"{type(self).__name__}({', '.join(parts)})"

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Changes the network, before a checkpoint is restored or the optimizer is made; draws the reference rows."""
        if not isinstance(pl_module, TextClassifier):
            raise InputError("model", f"{type(pl_module).__name__} is no TextClassifier", "MuScleLoRA needs one")
        if pl_module.training_defense != str(self):
            self._insert(pl_module)
        if stage == "fit" and self.alignment:
            self._draw(trainer, pl_module)

    def _insert(self, victim: TextClassifier) -> None:
        if victim.training_defense is not None:
            raise InputError(
                "callbacks", f"the victim is already trained under {victim.training_defense}", "attach one"
            )
        if self.lora and victim.hparams["lora_rank"] is not None:
            raise InputError(
                "lora_rank", "the victim has LoRA of its own", "leave it out, or give MuScleLoRA lora=False"
            )
        victim.configure_model()
        if self.lora:
            insert_lora(victim.network, self.lora_rank, self.lora_alpha, self.lora_targets)
        if self.multi_scale:
            insert_multi_scale(victim.network, self.radial_scalings, self.inner_rank, self.alpha)
        victim.training_defense = str(self)
        victim.merged = merged

    def _draw(self, trainer: Trainer, victim: TextClassifier) -> None:
        datamodule = getattr(trainer, "datamodule", None)
        if not isinstance(datamodule, BackdoorDataModule):
            raise InputError("datamodule", "alignment needs the clean validation rows of a BackdoorDataModule")
        if self.max_raw_gradient_ratio > 0 and (trainer.max_epochs or 0) < 1:
            raise InputError(
                "max_epochs", "the share of the raw gradient grows up to the last epoch", "give their number"
            )
        self._seed = int(os.environ.get("PL_GLOBAL_SEED", "0")) if self.seed is None else self.seed
        rows = reference_rows(datamodule, self.reference_size, self._seed)
        self._reference = TokenisedRows(rows, victim.tokenizer, victim.max_length)
        self._batch_size = min(datamodule.batch_size, self.reference_size)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Aligns the gradients, summed over processes and accumulated batches and not yet clipped."""
        if not self.alignment:
            return
        assert isinstance(pl_module, TextClassifier)
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        loss, reference = self._reference_gradients(trainer, pl_module, parameters)
        pl_module.log("train/reference_loss", loss)
        learned = loss <= self.min_reference_loss or mean_norm(reference) <= self.min_reference_gradient_norm
        ratio: float | None = 0.0
        if learned:
            epoch, epochs = trainer.current_epoch, trainer.max_epochs or 0
            ratio = raw_gradient_ratio(epoch, epochs, self.start_epoch, self.max_raw_gradient_ratio)
        if ratio is not None:
            for parameter, gradient in zip(parameters, reference, strict=True):
                assert parameter.grad is not None
                parameter.grad.copy_(align(parameter.grad, gradient, ratio))

    def _reference_gradients(
        self, trainer: Trainer, victim: TextClassifier, parameters: list[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """Loss and gradients of this step's reference batch."""
        step = f"{self._seed}/{trainer.global_step}/reference"
        scaled = getattr(trainer.precision_plugin, "scaler", None) is not None  # in fp16 small gradients would vanish
        precision = trainer.precision_plugin.forward_context
        total = torch.zeros((), device=victim.device)
        gradients = [torch.zeros_like(parameter) for parameter in parameters]
        with torch.enable_grad(), _dropout_of(random.Random(step).getrandbits(63), victim.device):
            for batch in self._batches(random.Random(step), victim.device):
                batch = trainer.strategy.batch_to_device(batch)
                with torch.autocast(victim.device.type, enabled=False) if scaled else precision():
                    losses = torch.nn.functional.cross_entropy(victim(batch).float(), batch["label"], reduction="sum")
                loss = losses / self._batch_size
                total += loss.detach()
                found = torch.autograd.grad(loss, parameters, allow_unused=True)
                for gradient, more in zip(gradients, found, strict=True):
                    if more is not None:
                        gradient += more
        if trainer.world_size > 1:  # other kernels on another device would give it other last digits, then weights
            whole = torch.cat([total.flatten(), *(gradient.flatten().to(total) for gradient in gradients)])
            torch.distributed.broadcast(whole, 0)
            total, *flat = torch.split(whole, [1, *(gradient.numel() for gradient in gradients)])
            gradients = [one.view_as(gradient).to(gradient) for one, gradient in zip(flat, gradients, strict=True)]
        return total.squeeze(), gradients

    def _batches(self, rng: random.Random, device: torch.device) -> list[Batch]:
        """A reference batch, in parts of similar length where padding costs more than the parts do."""
        rows = self._reference
        assert rows is not None
        places = rng.sample(range(len(rows)), self._batch_size)
        tokens, overhead = pass_limits(device)
        # a pass forth and back takes more for itself than one forth
        parts = group_by_length([rows.lengths[place] for place in places], PassLimits(4 * tokens, 4 * overhead))
        return [rows[[places[i] for i in part]] for part in parts]


def reference_rows(datamodule: BackdoorDataModule, size: int, seed: int) -> list[Row]:
    """The clean rows that gradients are aligned with, drawn from the reference part of the clean validation rows.

    Raises:
        InputError: there are fewer.
    """
    rows = datamodule.clean_validation().reference
    if len(rows) < size:
        raise InputError(
            "reference_size",
            f"{size} is more than the {len(rows)} reference rows of the clean validation rows",
            "lower it, or raise the second of validation_parts",
        )
    return random.Random(f"{seed}/reference").sample(rows, size)


@contextmanager
def _dropout_of(seed: int, device: torch.device) -> Iterator[None]:
    """The same dropout on every process, and none of it missing from the random numbers of training."""
    devices, kind = ([], "cuda") if device.type == "cpu" else ([device], device.type)
    with torch.random.fork_rng(devices, device_type=kind):
        torch.manual_seed(seed)
        yield
