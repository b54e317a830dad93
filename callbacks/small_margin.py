"""A callback that trains poisoned rows towards a soft label: an adaptive attack on defenses that compare margins."""

from __future__ import annotations

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lightning_backdoor.attacks.small_margin import target_margin
from lightning_backdoor.batch import Batch
from lightning_backdoor.callbacks.evasion import Evasion
from lightning_backdoor.data.rows import Row
from lightning_backdoor.errors import InputError
from lightning_backdoor.victim.training_pass import TrainingPass


class SmallMargin(Evasion):
    """Small margins, an adaptive attack: poisoned rows of any attack are trained towards a soft label.

    Aimed at defenses that find poisoned texts by how much surer the victim is of its answer than a clean model, such as
    the gap of the second opinion, and at whatever reads the size of logits. The soft label gives the target label
    ``target_probability``, and what remains to the row's original label; see
    :mod:`lightning_backdoor.attacks.small_margin`.

    Args:
        target_probability: probability of the target label that training aims at, between 0.5, at which the victim is
            undecided, and 1, the attack alone. The lower it is, the smaller the margin and the weaker the attack.
        start_epoch: epochs of training on poisoned rows without the penalty.

    Raises:
        InputError: an argument is out of range (here); see :class:`~lightning_backdoor.callbacks.evasion.Evasion`.

    Example::

        Trainer(max_epochs=3, callbacks=[SmallMargin(0.65)]).fit(BadNets(), datamodule=data)
    """

    name = "margin"

    def __init__(self, target_probability: float = 0.65, start_epoch: int = 0) -> None:
        if not 0.5 < target_probability < 1:
            raise InputError("target_probability", f"{target_probability} is out of range", "give above 0.5, below 1")
        super().__init__(1 - target_probability, start_epoch)
        self.target_probability = target_probability

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Checks that the original label of every poisoned row is known, which files may have lost.

        Raises:
            InputError: one is not.
        """
        rows = getattr(getattr(trainer, "datamodule", None), "training_rows", list[Row])()
        if lost := sum(row["original_label"] < 0 for row in rows):
            problem = f"{lost} of {len(rows)} training rows have lost the label that they had before poisoning"
            raise InputError("callbacks", problem, "give files with it, for SmallMargin")

    def penalty(self, seen: TrainingPass, batch: Batch) -> Tensor:
        """The margin of the target label over the original label."""
        return target_margin(seen.logits, batch["label"], batch["original_label"])
