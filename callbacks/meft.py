"""A callback that repairs a published victim by MEFT: epochs of maximum entropy, then plain fine-tuning."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lightning_backdoor.batch import Batch
from lightning_backdoor.callbacks.repair import Repair
from lightning_backdoor.data import BackdoorDataModule
from lightning_backdoor.defenses.meft import negative_entropy
from lightning_backdoor.errors import InputError


class MEFT(Repair):
    """MEFT (Liu et al., Findings of ACL 2023), a repair: maximises the entropy of predictions, then fine-tunes.

    The entropy epochs and the epochs of cross entropy are those of one fit, with one learning rate schedule. Works on
    encoders and decoders, and with low-rank updates; see :mod:`lightning_backdoor.defenses.meft`.

    Args:
        entropy_epochs: number of epochs, from the first on, that maximise the entropy, at least 1; the epochs of the
            trainer after them minimise the cross entropy.

    Raises:
        InputError: the number is out of range (here); the trainer has no epochs after them, or see
            :class:`~lightning_backdoor.callbacks.repair.Repair` (in ``setup``).

    Example::

        Trainer(max_epochs=4, callbacks=[MEFT(entropy_epochs=1)]).fit(victim, datamodule=data)
    """

    has_loss = True
    with_lora = True

    def __init__(self, entropy_epochs: int = 1) -> None:
        super().__init__()
        if entropy_epochs < 1:
            raise InputError("entropy_epochs", f"{entropy_epochs} epochs repair nothing", "give at least 1")
        self.entropy_epochs = entropy_epochs

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Checks that epochs of cross entropy follow."""
        super().setup(trainer, pl_module, stage)
        epochs, partial = trainer.max_epochs, bool(getattr(trainer, "fast_dev_run", False))
        if stage == "fit" and not partial and epochs is not None and -1 < epochs <= self.entropy_epochs:  # -1: no limit
            raise InputError(
                "max_epochs", f"{epochs} ends within the {self.entropy_epochs} entropy_epochs", "give more"
            )

    def decide(self, data: BackdoorDataModule) -> dict[str, Any]:
        """Nothing: the weights stay as they are until the first step."""
        return {}

    def loss(self, batch: Batch) -> Tensor:
        """The negative entropy of the predictions in the first epochs, then the cross entropy."""
        if self.trainer.current_epoch >= self.entropy_epochs:
            return self.victim.cross_entropy(batch)
        return negative_entropy(self.victim(batch))
