"""A repair and a training-time defense in one fit, which is refused in either order of the callbacks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_backdoor.attacks import BadNets
from lightning_backdoor.callbacks import ABL, MEFT, FineMixing, FinePruning, LowCapacity, Pure, Repair
from lightning_backdoor.data import BackdoorDataModule
from lightning_backdoor.errors import InputError
from lightning_backdoor.victim import TextClassifier, TrainingDefense
from tests.callbacks.test_repairs import data, fitted, make

__all__ = ["data", "make"]


class Unrecorded(Callback):
    """A training-time defense that is known by what it sets alone."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        assert isinstance(pl_module, TextClassifier)
        pl_module.training_defense = TrainingDefense("Unrecorded", {})


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize(
    ("defense", "repair"),
    [
        (lambda: ABL(), lambda: Pure()),
        (lambda: LowCapacity("lora"), lambda: FinePruning()),
        (lambda: LowCapacity("lora"), lambda: MEFT()),
        (lambda: Unrecorded(), lambda: FineMixing(pretrained="gone")),
    ],
)
def test_a_repair_beside_a_training_time_defense_is_refused_before_training(
    first: bool,
    defense: Callable[[], Callback],
    repair: Callable[[], Repair],
    tmp_path: Path,
    data: BackdoorDataModule,
    make: Callable[..., TextClassifier],
) -> None:
    class Trained(BadNets):
        def on_train_start(self) -> None:
            pytest.fail("it is trained")

    given = [defense(), repair()] if first else [repair(), defense()]
    said = f"callbacks: {' and '.join(type(each).__name__ for each in given)} act on one fit; attach one"
    if any(isinstance(each, Unrecorded) for each in given):
        problem = "the victim is trained under Unrecorded(), and repaired by FineMixing"
        said = f"callbacks: {problem}; attach one, to a new victim"
    with pytest.raises(InputError) as error:
        fitted(tmp_path, make(attack=Trained), data, *given)
    assert str(error.value) == said
