"""The base class of callbacks that repair a published victim: a decision from clean rows, then fine-tuning."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from inspect import signature
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from lightning_backdoor.batch import Batch
from lightning_backdoor.callbacks.shared import data_module, text_classifier
from lightning_backdoor.data import BackdoorDataModule
from lightning_backdoor.errors import InputError
from lightning_backdoor.models.precision import evaluation_precision
from lightning_backdoor.victim import TextClassifier
from lightning_backdoor.victim.provenance import plain


class Repair(Callback, ABC):
    """Base class of repairs: callbacks of a ``fit`` in the user's phase, which starts from a published victim.

    When training begins, a repair decides from clean rows what it changes in the victim (:meth:`decide`), and changes
    it (:meth:`change`); then the victim is trained, with the repair's own loss if it has one (:meth:`loss`). The
    decision of the first process counts for all. It is kept in checkpoints, so that a resumed fit goes on with it. The
    repaired victim is plain: its checkpoints and its exported folder load without the repair.

    A repair does nothing in evaluation. Which rows it trains on is an option of the data module: ``train_on: trusted``.

    Raises:
        InputError: the fit has no published victim, no :class:`~lightning_backdoor.data.BackdoorDataModule`, another
            repair or a training-time defense, or trains low-rank updates (in ``setup``); the victim's class has a
            training step that does not use the repair's loss (after the first batch).

    Example::

        victim = TextClassifier(published="runs/first/checkpoints/best.ckpt")
        Trainer(max_epochs=3, callbacks=[Pure()]).fit(victim, datamodule=data)  # data has train_on="trusted"
    """

    #: whether the repair changes the loss, by :meth:`loss`.
    has_loss = False
    #: whether the repair also works where low-rank updates are trained instead of the weights.
    with_lora = False

    def __init__(self) -> None:
        self.decided: dict[str, Any] | None = None
        self._trainer: Trainer | None = None
        self._victim: TextClassifier | None = None
        self._used = False  # whether the victim has asked for the loss

    @property
    def trainer(self) -> Trainer:
        """The trainer of the fit."""
        assert self._trainer is not None
        return self._trainer

    @property
    def victim(self) -> TextClassifier:
        """The victim that is repaired."""
        assert self._victim is not None
        return self._victim

    def __str__(self) -> str:
        """The name of the class and its arguments, of those that are kept in attributes of the same names."""
        known = {name: plain(getattr(self, name)) for name in signature(type(self)).parameters if hasattr(self, name)}
        return f"{type(self).__name__}({', '.join(f'{name}={value}' for name, value in known.items())})"

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Checks that the fit is one of the user's phase."""
        if stage != "fit":
            return
        name = type(self).__name__
        self._trainer, self._victim, self.decided = trainer, text_classifier(pl_module, name), None
        if self.victim.hparams["published"] is None:
            raise InputError(
                "published", f"{name} repairs a trained victim, and none is given", "give --model.published CHECKPOINT"
            )
        if self.victim.hparams["lora_rank"] is not None and not self.with_lora:
            raise InputError("lora_rank", f"{name} trains the weights themselves", "leave it out")
        if data_module(trainer) is None:
            raise InputError("datamodule", f"{name} needs clean validation rows", "give a BackdoorDataModule")
        repairs = [type(each).__name__ for each in self._callbacks() if isinstance(each, Repair)]
        if len(repairs) > 1:
            raise InputError("callbacks", f"{' and '.join(repairs)} repair one victim", "attach one repair")
        self._check_alone()
        if self.has_loss:
            self._used = False
            self.victim.objective = self._objective

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Checks again that no training-time defense is attached, since callbacks after this one are set up by now."""
        self._check_alone()

    def _check_alone(self) -> None:
        """Checks that there is no training-time defense, whose loss or whose layers the repair would not see."""
        defenses = [each for each in self._callbacks() if callable(getattr(each, "record", None))]
        names = [type(each).__name__ for each in self._callbacks() if each is self or each in defenses]
        if defenses:
            raise InputError("callbacks", f"{' and '.join(names)} act on one fit", "attach one")
        if self.victim.training_defense is not None:
            problem = f"the victim is trained under {self.victim.training_defense}, and repaired by {names[0]}"
            raise InputError("callbacks", problem, "attach one, to a new victim")

    def _callbacks(self) -> list[Callback]:
        callbacks: list[Callback] = self.trainer.callbacks  # type: ignore[attr-defined]
        return callbacks

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Gives the victim its own loss again."""
        self._detach()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Gives the victim its own loss again after a fit that failed."""
        self._detach()

    def _detach(self) -> None:
        if self._victim is not None:
            self._victim.objective = None
            self._trainer = self._victim = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Decides and changes the victim, unless the fit is resumed."""
        if self.decided is None:
            data = data_module(trainer)
            assert data is not None
            with evaluation_precision(trainer):
                self.decided = trainer.strategy.broadcast(self.decide(data))
            self.change(self.decided)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Names itself in the victim, for its model card."""
        self.victim.repair = str(self)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Checks that the victim is trained with the repair's loss."""
        if self.has_loss and not self._used:
            problem = f"{type(pl_module).__name__} has a training_step that ignores the loss of {type(self).__name__}"
            raise InputError("model", problem, "let it return super().training_step(...) in the user's phase")

    def _objective(self, batch: Batch) -> Tensor:
        self._used = True
        return self.loss(batch)

    @abstractmethod
    def decide(self, data: BackdoorDataModule) -> dict[str, Any]:
        """What to change in :attr:`victim`, as plain values; every process calls it, and the first one's result counts.

        Args:
            data: the data module. Decisions use its trusted rows, selection and reference, alone.
        """

    def change(self, decided: dict[str, Any]) -> None:
        """Changes :attr:`victim` as decided; called once, before the first step."""

    def loss(self, batch: Batch) -> Tensor:
        """The loss of a training batch, a scalar with gradients, for repairs with ``has_loss``."""
        return self.victim.cross_entropy(batch)

    def on_device(self, batches: Iterable[Batch]) -> list[Batch]:
        """Batches on the device of the victim."""
        return [self.trainer.strategy.batch_to_device(batch) for batch in batches]

    def state_dict(self) -> dict[str, Any]:
        """The decision."""
        return {} if self.decided is None else {"decided": self.decided}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over the decision of the fit that is resumed."""
        self.decided = state_dict.get("decided")


class PruningRepair(Repair):
    """Base class of repairs that prune: pruned weights stay zero while the rest is trained."""

    @abstractmethod
    def zero_gradients(self, decided: dict[str, Any]) -> None:
        """Sets the gradients of the pruned weights to zero."""

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Keeps the pruned weights at zero; called before gradients are clipped."""
        if self.decided is not None:
            self.zero_gradients(self.decided)
