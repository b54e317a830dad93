"""A callback that trains any victim under ABL, a training-time defense: isolates rows that are learned first."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning_utilities.core.rank_zero import rank_zero_info
from torch import Tensor
from torch.nn.functional import cross_entropy

from lightning_backdoor.batch import Batch
from lightning_backdoor.callbacks.shared import data_module, text_classifier, undefended_network
from lightning_backdoor.data import BackdoorDataModule
from lightning_backdoor.data.batching import DealtBatches, TokenisedRows
from lightning_backdoor.defenses.abl import first_learned, global_gradient_ascent, local_gradient_ascent, mean_of
from lightning_backdoor.errors import InputError
from lightning_backdoor.models.evaluation_mode import evaluating
from lightning_backdoor.models.precision import evaluation_precision
from lightning_backdoor.victim import TextClassifier
from lightning_backdoor.victim.training_defense import TrainingDefense


class ABL(Callback):
    """Anti-backdoor learning (arXiv 2110.11571), a training-time defense: unlearns the rows that are learned first.

    In the first epochs no row's loss may fall far below ``gamma``. Then the rows with the lowest losses, all of them
    computed once in evaluation mode, are isolated, and in the epochs that follow the other rows are learned while the
    isolated rows are unlearned; see :mod:`lightning_backdoor.defenses.abl` for the losses and for what the published
    program does. The victim is defended only when training ends, so ``fit`` keeps the last epoch as the best.

    Published for networks trained from nothing: 20 of 100 epochs until the isolation. The published program fine-tunes
    on the other rows after the isolation and unlearns in the last epochs; ``unlearning_epochs`` does so.

    Args:
        turning_point: share of the epochs after which rows are isolated, rounded to whole epochs, at least one.
        gamma: lower bound on the losses in these epochs.
        isolation_rate: share of the training rows that are isolated.
        unlearning_epochs: number of last epochs in which isolated rows are unlearned; in those before they are left
            out. None unlearns them in all epochs after the isolation.

    Raises:
        InputError: a value is out of range (here); the trainer has too few epochs, there is no data module, two
            training rows have the same index, or the victim has another training-time defense or an attack that
            changes training (in ``setup``).

    Example::

        Trainer(max_epochs=5, callbacks=[ABL()]).fit(BadNets(), datamodule=data)
    """

    #: the metric by which ``fit`` selects the best checkpoint; earlier ones are not defended yet.
    selected_by = ("epoch", "max")

    def __init__(
        self,
        turning_point: float = 0.2,
        gamma: float = 0.5,
        isolation_rate: float = 0.01,
        unlearning_epochs: int | None = None,
    ) -> None:
        for name, share in {"turning_point": turning_point, "isolation_rate": isolation_rate}.items():
            if not 0 < share < 1:
                raise InputError(name, f"{share} is not a share", "give a number between 0 and 1")
        if not 0 <= gamma < math.inf:
            raise InputError("gamma", f"{gamma} is out of range", "give 0 or more")
        if unlearning_epochs is not None and unlearning_epochs < 1:
            raise InputError("unlearning_epochs", f"{unlearning_epochs} unlearns nothing", "give at least 1")
        self.turning_point = turning_point
        self.gamma = gamma
        self.isolation_rate = isolation_rate
        self.unlearning_epochs = unlearning_epochs
        self._isolated: Tensor | None = None
        self._epoch = self._turn = self._unlearn = 0

    def record(self) -> TrainingDefense:
        """The record for the victim and its checkpoints."""
        names = ("turning_point", "gamma", "isolation_rate", "unlearning_epochs")
        return TrainingDefense(type(self).__name__, {name: getattr(self, name) for name in names})

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Checks that the victim can be trained so, and takes over its loss."""
        victim = text_classifier(pl_module, type(self).__name__)
        record = self.record()
        if victim.training_defense != record:
            undefended_network(victim)
            victim.training_defense = record
        if stage == "fit":
            self._check(trainer, victim)
            self._isolated = None
            victim.row_loss = self._loss

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Gives the victim its own loss again."""
        text_classifier(pl_module, type(self).__name__).row_loss = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Gives the victim its own loss again after a fit that failed."""
        if isinstance(pl_module, TextClassifier):
            pl_module.row_loss = None

    def state_dict(self) -> dict[str, Any]:
        """The isolated rows, by their index."""
        return {"isolated": None if self._isolated is None else self._isolated.tolist()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the isolated rows of a checkpoint."""
        isolated = state_dict["isolated"]
        self._isolated = None if isolated is None else torch.tensor(isolated)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Isolates rows before the first step after the turning point."""
        self._epoch = trainer.current_epoch
        if self._isolated is None and self._epoch >= self._turn:
            data = data_module(trainer)
            assert data is not None
            self._isolated = self._isolate(trainer, text_classifier(pl_module, type(self).__name__), data)

    def _check(self, trainer: Trainer, victim: TextClassifier) -> None:
        data = data_module(trainer)
        if data is None:
            raise InputError("datamodule", "rows are isolated by their index", "give a BackdoorDataModule")
        values, counts = np.unique(data.training_rows().index, return_counts=True)
        if len(values) and counts.max() > 1:
            problem = f"{counts.max()} training rows have {values[counts.argmax()]}, and ABL isolates rows by it"
            raise InputError("index", problem, "give each row of the file its own, or leave the column out")
        trains_itself = type(victim).training_step is not TextClassifier.training_step
        if trains_itself and not getattr(victim, "users_phase", False):
            problem = f"{type(victim).__name__} trains by a loss of its own, and rows cannot be unlearned"
            raise InputError("callbacks", problem, "defend a user's phase (published), or another attack")
        epochs = trainer.max_epochs or 0
        self._turn = max(1, round(self.turning_point * epochs))
        last = epochs - self._turn if self.unlearning_epochs is None else self.unlearning_epochs
        if epochs < self._turn + max(1, last) and not getattr(trainer, "fast_dev_run", False):
            needed = self._turn + max(1, last)
            problem = f"{epochs} are too few for {self._turn} before the isolation and {max(1, last)} that unlearn"
            raise InputError("max_epochs", problem, f"give at least {needed}")
        self._unlearn = epochs - last

    @torch.no_grad()
    def _isolate(self, trainer: Trainer, victim: TextClassifier, data: BackdoorDataModule) -> Tensor:
        """The index of the rows that were learned first; every process computes a part of the losses."""
        rows = data.training_rows()
        tokenised = TokenisedRows(rows, victim.tokenizer, victim.max_length)
        rank, processes = trainer.global_rank, trainer.world_size
        order = DealtBatches(tokenised.lengths, data.eval_batch_size, rank, processes, shuffle=False, seed=0)
        losses = torch.zeros(len(rows), device=victim.device)
        with evaluating(victim), evaluation_precision(trainer):
            for positions in order:
                batch = trainer.strategy.batch_to_device(tokenised[positions])
                losses[positions] = cross_entropy(victim(batch).float(), batch["label"], reduction="none")
        losses = trainer.strategy.reduce(losses, reduce_op="sum")  # each row's loss is 0 on all processes but one
        first = first_learned(losses.cpu(), self.isolation_rate)
        first = trainer.strategy.broadcast(first)  # devices may differ in the last digits
        poisoned = int(rows.poisoned[first.numpy()].sum())
        rank_zero_info(f"ABL isolated {len(first)} of {len(rows)} training rows, {poisoned} of them poisoned")
        return torch.from_numpy(rows.index[first.numpy()])

    def _loss(self, losses: Tensor, batch: Batch) -> Tensor:
        """The loss of a training batch, by the stage of the training."""
        if self._isolated is None:
            return local_gradient_ascent(losses, self.gamma)
        isolated = torch.isin(batch["index"], self._isolated.to(losses.device))
        if self._epoch < self._unlearn:
            return mean_of(losses, ~isolated)
        return global_gradient_ascent(losses, isolated)
