"""Ends a training whose loss or weights are no longer finite numbers, on all processes at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from lightning_backdoor.errors import Diverged

#: batches between two checks where the trainer's ``log_every_n_steps`` is 0.
CHECKED_EVERY = 50


class FiniteTraining(LightningModule):
    """Base class of modules that stop when they diverge.

    Losses are counted on the device without waiting for it. The count is read after each batch on one processor;
    otherwise every ``log_every_n_steps`` batches and at the end of an epoch, summed over all processes. The end of an
    epoch also checks the weights, before a checkpoint is kept. Under 16-bit mixed precision losses are not checked,
    since its gradient scaler skips steps that overflow.
    """

    def __init__(self) -> None:
        super().__init__()
        self._not_finite: Tensor | None = None  # not a buffer: checkpoints have no use for it

    def on_train_start(self) -> None:
        """Forgets what a fit that failed has counted and not checked."""
        self._not_finite = None

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Counts a loss that is not finite.

        Raises:
            Diverged: a loss was NaN or infinite.
        """
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if not isinstance(loss, Tensor) or getattr(self.trainer.precision_plugin, "scaler", None) is not None:
            return
        self._not_finite = _sum(self._not_finite, loss.detach())
        one_processor = self.trainer.world_size == 1 and loss.device.type == "cpu"
        interval = 1 if one_processor else self.trainer.log_every_n_steps or CHECKED_EVERY  # type: ignore[attr-defined]
        if (batch_idx + 1) % interval == 0:
            self._refuse("NaN or infinite losses: {}")

    def on_train_epoch_end(self) -> None:
        """Checks the losses and weights of the epoch.

        Raises:
            Diverged: a loss or a trained weight is NaN or infinite.
        """
        self._refuse("NaN or infinite losses: {}")
        weights = [parameter.detach() for parameter in self.parameters() if parameter.requires_grad]
        wrong = sum(int((~weight.isfinite()).sum()) for weight in weights) if not all_finite(weights) else 0
        self._not_finite = torch.tensor(wrong, device=self.device)
        self._refuse("NaN or infinite weights: {}")

    def _refuse(self, problem: str) -> None:
        """Raises ``Diverged`` if anything was counted on any process; all processes must call it together."""
        counted, self._not_finite = self._not_finite, None
        if counted is None:
            return
        total = int(self.trainer.strategy.reduce(counted.float(), reduce_op="sum"))
        if total:
            where = f"in epoch {self.current_epoch}, step {self.global_step}"
            remedy = f"lower learning_rate ({self.hparams.get('learning_rate')}) or set the trainer's gradient_clip_val"
            raise Diverged(f"training diverged {where}: {problem.format(total)}; {remedy}")


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether all numbers of some tensors are finite; waits for the device once, in most cases.

    >>> all_finite([torch.ones(2), torch.tensor([1.0, torch.inf])]), all_finite([torch.full((2,), 3e38)])
    (False, True)
    """
    tensors = [tensor for tensor in tensors if tensor.is_floating_point()]
    # sums are several times as fast as isfinite, but may overflow
    sums = [tensor.sum(dtype=torch.float32) for tensor in tensors]
    if not sums or bool(torch.stack([number.to(sums[0].device) for number in sums]).sum().isfinite()):
        return True
    return all(bool(tensor.isfinite().all()) for tensor in tensors)


def _sum(before: Tensor | None, values: Tensor) -> Tensor:
    """The number of values that are not finite, added to an earlier number; on the device."""
    number = (~values.isfinite()).sum()
    return number if before is None else before.to(number.device) + number


def count_not_finite(logits: Tensor) -> Tensor:
    """The number of texts with a logit that is NaN or infinite, int64, on the device.

    >>> count_not_finite(torch.tensor([[0.0, torch.nan], [1.0, 2.0]]))
    tensor(1)
    """
    return (~logits.isfinite()).any(dim=-1).sum()


def check_logits(logits: Tensor) -> None:
    """Checks a batch of logits, (batch, classes); waits for the device.

    Raises:
        Diverged: a logit is NaN or infinite.
    """
    number = int(count_not_finite(logits))
    if number:
        raise diverged_victim(number, len(logits))


def diverged_victim(number: int, texts: int) -> Diverged:
    """The error for a victim whose logits for ``number`` of ``texts`` texts are not finite."""
    return Diverged(
        f"the victim diverged: its logits for {number} of {texts} texts are NaN or infinite; train it again with a"
        " lower learning_rate or with gradient_clip_val"
    )
