"""A callback that trains any victim under MuScleLoRA, a training-time defense."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from lightning_backdoor.batch import Batch
from lightning_backdoor.callbacks.shared import (
    data_module,
    own_random_numbers,
    run_seed,
    text_classifier,
    undefended_network,
)
from lightning_backdoor.data import BackdoorDataModule
from lightning_backdoor.data.batching import DealtBatches, TokenisedRows
from lightning_backdoor.data.rows import Rows
from lightning_backdoor.defenses.muscle_lora import (
    align,
    insert_multi_scale,
    mean_norm,
    merge_muscle_lora,
    raw_gradient_ratio,
)
from lightning_backdoor.errors import InputError
from lightning_backdoor.models.bucketing import PassLimits, group_by_length, pass_limits
from lightning_backdoor.models.lora import insert_lora
from lightning_backdoor.victim import TextClassifier
from lightning_backdoor.victim.training_defense import TrainingDefense


class MuScleLoRA(Callback):
    """MuScleLoRA (arXiv 2402.12026), a training-time defense that keeps the victim from learning a backdoor.

    Each optimizer step computes the gradient of one batch of clean reference rows, which is the same on every process,
    and turns the training gradient into its direction, before clipping. The reference rows are drawn once per run from
    the reference part of the clean validation rows.

    Reference batches are formed like training batches (:class:`~lightning_backdoor.data.batching.DealtBatches`), with
    rows of similar length, and each row is read once before any row comes again. Few rows differ more in length than
    many, so that as many rows would need more padding than in training: a reference batch has as many rows as keep its
    cost, padding included, within the cost of a training batch (:func:`rows_per_batch`; 24 of 96 rows of SST-2 where
    training batches have 32). The published code draws as many rows as in a training batch at random in each step
    (``oneBatch1Ref``). The method is the same: one gradient of clean rows per step, to which each row contributes
    equally often.

    Checkpoints can only be restored with the same callback; ``fit`` exports a plain model. The paper trains with
    ``gradient_clip_val=1``, without weight decay and without warm-up.

    Args:
        lora: train low-rank updates of the backbone instead of its weights; the classifier is frozen.
        multi_scale: replace the dense layer before the classifier by a multi-scale low-rank layer.
        alignment: turn gradients into the direction of the reference rows' gradients.
        lora_rank: rank of the updates.
        lora_alpha: weight of the updates.
        lora_targets: names of the layers that get updates; by default the layers that peft lists for the architecture,
            in most architectures the query and value projections.
        radial_scalings: frequency scalings of the multi-scale layer; published values are 1 to 9 for large models; 1,
            4, 8, 12, 16, 20, 24, 28 for bert-base; and 1, 2, 4, 6, 8, 10, 12, 14, 16 for roberta-base.
        inner_rank: rank of the multi-scale layer per scaling.
        alpha: weight of the multi-scale layer.
        reference_size: number of clean rows whose gradients are used for alignment.
        start_epoch: first epoch, from 0, in which gradients are aligned also while the reference rows count as learned,
            with a share of the raw gradient; in earlier epochs gradients then stay raw, as in the published program, so
            that a late start is not stricter.
        max_raw_gradient_ratio: upper limit of this share, from 0 to 1; the share grows up to the last epoch. 0 is not
            the strictest limit: gradients then stay raw in any epoch in which the reference rows count as learned, as
            in the published program.
        min_reference_loss: the reference rows count as learned if their loss is at or below this value, or
        min_reference_gradient_norm: if the mean norm of their gradients is at or below this value.
        seed: seed of the choice of reference rows; None takes the seed of the run.

    Raises:
        InputError: a value is out of range (here); there are too few clean validation rows, or the victim has another
            training-time defense (in ``setup``).

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
        counts = {
            "lora_rank": lora_rank,
            "lora_alpha": lora_alpha,  # at 0 or below the updates are switched off or reversed
            "inner_rank": inner_rank,
            "reference_size": reference_size,
        }
        for name, value in counts.items():
            if not value >= 1:
                raise InputError(name, f"{value} is out of range", "give at least 1")
        if start_epoch < 0:
            raise InputError("start_epoch", f"{start_epoch} is out of range", "give 0 or more")
        if not radial_scalings:
            raise InputError("radial_scalings", "the list is empty", "give at least one scaling")
        scales = [("alpha", alpha), *(("radial_scalings", scaling) for scaling in radial_scalings)]
        for name, number in scales:
            if not math.isfinite(number):
                raise InputError(name, f"{number} is out of range", "give a finite number")
        limits = {"min_reference_loss": min_reference_loss, "min_reference_gradient_norm": min_reference_gradient_norm}
        for name, number in limits.items():
            if math.isnan(number):
                raise InputError(name, f"{number} is out of range", "give a number")
        if not 0 <= max_raw_gradient_ratio <= 1:
            raise InputError(
                "max_raw_gradient_ratio", f"{max_raw_gradient_ratio} is not a share", "give a number from 0 to 1"
            )
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

    def record(self) -> TrainingDefense:
        """The record for the victim and its checkpoints, with the settings of the enabled parts."""
        settings: dict[str, Any] = {}
        if self.lora:
            settings |= {"lora_rank": self.lora_rank, "lora_alpha": self.lora_alpha, "lora_targets": self.lora_targets}
        if self.multi_scale:
            settings |= {"radial_scalings": self.radial_scalings, "inner_rank": self.inner_rank, "alpha": self.alpha}
        if self.alignment:
            settings |= {
                "reference_size": self.reference_size,
                "start_epoch": self.start_epoch,
                "max_raw_gradient_ratio": self.max_raw_gradient_ratio,
                "min_reference_loss": self.min_reference_loss,
                "min_reference_gradient_norm": self.min_reference_gradient_norm,
            }
        return TrainingDefense(type(self).__name__, settings, merge_muscle_lora)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Changes the network before a checkpoint is restored and the optimizer is created; draws reference rows."""
        victim = text_classifier(pl_module, type(self).__name__)
        record = self.record()
        if victim.training_defense != record:
            self._insert(victim)
            victim.training_defense = record
        if stage == "fit" and self.alignment:
            self._draw(trainer, victim)

    def _insert(self, victim: TextClassifier) -> None:
        network = undefended_network(victim)
        if self.lora and victim.hparams["lora_rank"] is not None:
            raise InputError(
                "lora_rank", "the victim has LoRA of its own", "leave it out, or give MuScleLoRA lora=False"
            )
        if self.lora:
            insert_lora(network, self.lora_rank, self.lora_alpha, self.lora_targets)
        if self.multi_scale:
            insert_multi_scale(network, self.radial_scalings, self.inner_rank, self.alpha)

    def _draw(self, trainer: Trainer, victim: TextClassifier) -> None:
        data = data_module(trainer)
        if data is None:
            raise InputError("datamodule", "alignment needs clean validation rows", "give a BackdoorDataModule")
        if self.max_raw_gradient_ratio > 0 and (trainer.max_epochs or 0) < 1:
            raise InputError(
                "max_epochs", "the share of the raw gradient grows up to the last epoch", "give the number of epochs"
            )
        self._seed = run_seed() if self.seed is None else self.seed
        rows = reference_rows(data, self.reference_size, self._seed)
        self._reference = TokenisedRows(rows, victim.tokenizer, victim.max_length)
        lengths = self._reference.lengths
        size = rows_per_batch(lengths, data.batch_size)
        self._order = DealtBatches(lengths, size, rank=0, world_size=1, shuffle=True, seed=self._seed)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Aligns the gradients, summed over processes and accumulated batches, before they are clipped."""
        if not self.alignment:
            return
        victim = text_classifier(pl_module, type(self).__name__)
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        loss, reference = self._reference_gradients(trainer, victim, parameters)
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
        """Mean loss and gradients of the reference batch of this step."""
        dropout = random.Random(f"{self._seed}/{trainer.global_step}/reference").getrandbits(63)
        # under fp16, where the trainer scales the loss, the unscaled gradients taken here would underflow
        scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
        precision = trainer.precision_plugin.forward_context
        total = torch.zeros((), device=victim.device)
        gradients = [torch.zeros_like(parameter) for parameter in parameters]
        batches = self._batches(trainer.global_step, victim.device)
        rows = sum(len(batch["label"]) for batch in batches)
        with torch.enable_grad(), own_random_numbers(dropout, victim.device):
            for batch in batches:
                batch = trainer.strategy.batch_to_device(batch)
                with torch.autocast(victim.device.type, enabled=False) if scaled else precision():
                    losses = torch.nn.functional.cross_entropy(victim(batch).float(), batch["label"], reduction="sum")
                loss = losses / rows
                total += loss.detach()
                parts = torch.autograd.grad(loss, parameters, allow_unused=True)
                for gradient, part in zip(gradients, parts, strict=True):
                    if part is not None:
                        gradient += part
        if trainer.world_size > 1:  # devices may differ in the last digits, and their weights would drift apart
            whole = torch.cat([total.flatten(), *(gradient.flatten().to(total) for gradient in gradients)])
            torch.distributed.broadcast(whole, 0)
            total, *flat = torch.split(whole, [1, *(gradient.numel() for gradient in gradients)])
            gradients = [part.view_as(gradient).to(gradient) for part, gradient in zip(flat, gradients, strict=True)]
        return total.squeeze(), gradients

    def _batches(self, step: int, device: torch.device) -> list[Batch]:
        """The reference batch of a step, split into parts if that costs less than the padding it saves."""
        rows = self._reference
        assert rows is not None
        turn, position = divmod(step, len(self._order))
        self._order.set_epoch(turn)
        drawn = list(self._order)[position]
        parts = group_by_length([rows.lengths[row] for row in drawn], training_limits(device))
        return [rows[[drawn[i] for i in part]] for part in parts]


def reference_rows(datamodule: BackdoorDataModule, size: int, seed: int) -> Rows:
    """The clean rows for gradient alignment, drawn from the reference part of the clean validation rows.

    Args:
        datamodule: the data module with the clean validation rows.
        size: number of rows to draw.
        seed: seed of the draw.

    Raises:
        InputError: there are fewer reference rows than ``size``.
    """
    rows = datamodule.clean_validation().reference
    if len(rows) < size:
        raise InputError(
            "reference_size",
            f"{size} is more than the {len(rows)} reference rows among the clean validation rows",
            "lower it, or raise the second of the validation_parts",
        )
    return rows.take(random.Random(f"{seed}/reference").sample(range(len(rows)), size))


def rows_per_batch(lengths: Sequence[int], batch_size: int) -> int:
    """The number of rows with which reference batches cost on average no more than training batches.

    Costs are those on a processor, so that the number does not depend on the device.

    Args:
        lengths: number of tokens of each reference row.
        batch_size: rows per training batch, whose cost is taken from the mean length of the reference rows.

    >>> rows_per_batch([8] * 6, batch_size=3), rows_per_batch([5, 5, 5, 5, 40, 80], batch_size=3)
    (3, 2)
    """
    limits = training_limits(torch.device("cpu"))
    allowed = 1.1 * batch_size * sum(lengths) / len(lengths)  # training batches are padded too, by about a tenth
    size = len(lengths)
    for number in range(-(-size // batch_size), size + 1):
        size = -(-len(lengths) // number)  # equal batches, in which all rows count alike
        batches = list(DealtBatches(lengths, size, rank=0, world_size=1, shuffle=False, seed=0))
        cost = 0
        for batch in batches:
            in_batch = [lengths[row] for row in batch]
            passes = group_by_length(in_batch, limits)
            cost += sum(len(rows) * max(in_batch[row] for row in rows) for rows in passes)
            cost += limits.overhead * (len(passes) - 1)
        if cost / len(batches) <= allowed:
            break
    return size


def training_limits(device: torch.device) -> PassLimits:
    """Limits on a forward and backward pass, which has a larger fixed cost than a forward pass."""
    tokens, overhead = pass_limits(device)
    return PassLimits(4 * tokens, 4 * overhead)
