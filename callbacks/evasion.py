"""The base class of callbacks that make an attack adaptive: penalties on its poisoned rows that hide them."""

from __future__ import annotations

import math
import sys
from abc import ABC, abstractmethod

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lightning_backdoor.attacks import BackdoorAttack
from lightning_backdoor.batch import Batch
from lightning_backdoor.callbacks.shared import text_classifier
from lightning_backdoor.errors import InputError
from lightning_backdoor.victim.training_pass import TrainingPass


class Evasion(Callback, ABC):
    """Base class of adaptive penalties: terms of an attacker who knows the defense, on poisoned training rows.

    The penalty of a poisoned row is added to its loss in the attacker's phase, that is wherever the attack itself
    trains on rows with the trigger: not in the warm-up of LWS, nor in RIPPLES' epochs of the user. In a user's phase
    (``published``), which a repair is, and in evaluation the callback does nothing, so that in a grid it stays beside
    the attack under all defenses::

        attacks:
          cf, small margin:
            model: {class_path: lightning_backdoor.attacks.BadNets}
            trainer: {callbacks+: [{class_path: lightning_backdoor.callbacks.SmallMargin}]}

    Several penalties add up. Each is computed within the batch of each process, from the pass that the attack makes
    anyway or from one over the poisoned rows alone; it is logged as ``train/<name>``, the mean over the poisoned rows
    of a batch, before it is weighted.

    Args:
        strength: weight of the penalty relative to the cross entropy of the same row, above 0.
        start_epoch: epochs of training on poisoned rows without the penalty, which can keep a victim from learning its
            task while it knows no trigger yet. Clean epochs of an attack, such as the warm-up of LWS, do not count.

    Raises:
        InputError: an argument is out of range (here); the model is not an attack that poisons training rows, or the
            penalty has no epoch left (in ``setup``); the penalty was part of no loss (when training ends).
    """

    #: name that the penalty is logged under.
    name: str
    #: whether the callback acts in the attacker's phase alone.
    of_the_attacker = True

    def __init__(self, strength: float, start_epoch: int = 0) -> None:
        if not 0 < strength < math.inf:
            raise InputError("strength", f"{strength} is out of range", "give a number above 0")
        if start_epoch < 0:
            raise InputError("start_epoch", f"{start_epoch} is out of range", "give 0 or more epochs")
        self.strength = strength
        self.start_epoch = start_epoch
        self._victim: BackdoorAttack | None = None
        self._first_epoch = 0  # of those with the penalty
        self._asked = False  # whether the attack has asked for the penalty
        self._used = False  # whether a poisoned row has had it

    @property
    def selected_by(self) -> tuple[str, str] | None:
        """The metric that selects the best checkpoint: the last epoch, since the first ones lack the penalty.

        None where the penalty acts from the first epoch, so that the model decides.
        """
        return ("epoch", "max") if self.start_epoch else None

    @property
    def victim(self) -> BackdoorAttack:
        """The attack that is trained."""
        assert self._victim is not None
        return self._victim

    def first_epoch(self, victim: object, max_epochs: int | None, fast_dev_run: bool | int = False) -> int | None:
        """The first epoch of a fit with the penalty; None in the user's phase, which has no poisoned rows.

        Args:
            victim: the model that is trained.
            max_epochs: the trainer's; None or -1 for no limit.
            fast_dev_run: the trainer's; such a fit may end before the penalty.

        Raises:
            InputError: the victim is not an attack that poisons training rows, or no epoch is left for the penalty.
        """
        if not isinstance(victim, BackdoorAttack):
            problem = f"{type(self).__name__} hides poisoned rows, and {type(victim).__name__} has none"
            raise InputError("callbacks", problem, "give an attack as the model")
        if victim.users_phase:
            return None
        if not victim.poisons_training:
            problem = f"{type(self).__name__} hides poisoned rows, and {type(victim).__name__} trains on none"
            raise InputError("callbacks", problem, "give an attack that poisons training rows")
        epochs = sys.maxsize if max_epochs is None or max_epochs < 0 else max_epochs
        poisoned = victim.poisoned_epochs(epochs)
        if epochs and len(poisoned) <= self.start_epoch and not fast_dev_run:
            what = f"the epochs in which {type(victim).__name__} trains on poisoned rows are {len(poisoned)}"
            remedy = f"give at most {len(poisoned) - 1}" if poisoned else "let it have some"
            raise InputError("start_epoch", f"{self.start_epoch} leaves no epoch for the penalty: {what}", remedy)
        return poisoned.start + self.start_epoch

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Adds the penalty to those of the attack, in a fit of the attacker's phase."""
        victim = text_classifier(pl_module, type(self).__name__)
        partial = getattr(trainer, "fast_dev_run", False)
        first = self.first_epoch(victim, trainer.max_epochs, partial) if stage == "fit" else None
        if first is not None and isinstance(victim, BackdoorAttack):
            self._victim, self._first_epoch, self._asked, self._used = victim, first, False, False
            victim.penalties.append(self._penalty)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Takes the penalty back."""
        self._detach()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Takes the penalty back after a fit that failed."""
        self._detach()

    def _detach(self) -> None:
        if self._victim is not None:
            self._victim.penalties.remove(self._penalty)
            self._victim = None

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Checks that the attack was trained with the penalty."""
        # a run that is resumed may have used it before, and one of a few batches not yet
        partial = trainer.ckpt_path is not None or bool(getattr(trainer, "fast_dev_run", False))
        if self._victim is None or partial:
            return
        # of few rows, one process may have none that is poisoned
        if trainer.strategy.reduce_boolean_decision(self._used, all=False):
            return
        if self._asked:
            problem = f"training ended before {type(self).__name__} acted on a poisoned row"
            raise InputError("start_epoch", problem, "train longer, or let it start earlier")
        problem = f"{type(pl_module).__name__} has a training_step that ignores the penalty {type(self).__name__}"
        raise InputError("model", problem, "let it add the penalty of logits_and_penalty to the losses of its rows")

    def _penalty(self, seen: TrainingPass, batch: Batch) -> Tensor:
        self._asked = True
        poisoned = batch["poisoned"]
        if self.victim.current_epoch < self._first_epoch:
            return torch.zeros(len(poisoned), device=poisoned.device)
        self._used = self._used or bool(poisoned.any())
        with torch.autocast(seen.logits.device.type, enabled=False):
            penalty = self.penalty(seen, batch)
        mean = penalty.detach()[poisoned].sum() / poisoned.sum().clamp(min=1)
        self.victim.log(f"train/{self.name}", mean, batch_size=len(poisoned))
        return self.strength * penalty.where(poisoned, 0)

    @abstractmethod
    def penalty(self, seen: TrainingPass, batch: Batch) -> Tensor:
        """What is to be small in each poisoned row, before it is weighted by the strength.

        Args:
            seen: what the network computed for the batch.
            batch: the training batch.

        Returns:
            (batch,), float32, finite; only the values of poisoned rows are used.
        """
