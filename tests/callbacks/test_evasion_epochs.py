"""The epochs in which adaptive penalties act, and fits in which they could not, which are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lightning_backdoor.attacks import EP, LWS, BackdoorAttack, BadNets, Ripples
from lightning_backdoor.attacks.task_agnostic import TaskAgnosticAttack
from lightning_backdoor.callbacks import StateMatching
from lightning_backdoor.data import BackdoorDataModule
from lightning_backdoor.errors import InputError
from tests.callbacks.test_evasion import Witness
from tests.callbacks.test_muscle_lora import data, make, trainer_with

__all__ = ["data", "make"]


def test_an_attack_says_which_epochs_have_poisoned_rows() -> None:
    attacks = (BadNets(), Ripples(attack_epochs=2), EP(attack_epochs=2), LWS(warmup_epochs=1))
    assert [[*attack.poisoned_epochs(3)] for attack in attacks] == [[0, 1, 2], [0, 1], [1, 2], [1, 2]]
    assert [[*attack.poisoned_epochs(1)] for attack in attacks] == [[0], [0], [0], []]


@pytest.mark.parametrize(
    ("cls", "options"), [(Ripples, {"attack_epochs": 2}), (EP, {"attack_epochs": 2}), (LWS, {"warmup_epochs": 1})]
)
def test_the_start_is_counted_from_the_first_epoch_with_poisoned_rows(
    tmp_path: Path,
    data: BackdoorDataModule,
    make: Callable[..., BadNets],
    cls: type[BackdoorAttack],
    options: dict[str, Any],
) -> None:
    attack = cls(model=make().hparams["model"], **options)
    witness = Witness(start_epoch=1)
    trainer_with(tmp_path, witness, max_epochs=3).fit(attack, datamodule=data)
    assert {epoch for epoch, _, _ in witness.seen} == {1 if cls is Ripples else 2}
    assert any(poisoned for _, poisoned, _ in witness.seen)


@pytest.mark.parametrize(
    ("cls", "options", "said"),
    [
        (BadNets, {}, "BadNets trains on poisoned rows are 1; give at most 0"),
        (Ripples, {"attack_epochs": 1}, "Ripples trains on poisoned rows are 1; give at most 0"),
        (Ripples, {"attack_epochs": 0}, "Ripples trains on poisoned rows are 0; let it have some"),
        (EP, {"attack_epochs": 1}, "EP trains on poisoned rows are 1; give at most 0"),
    ],
)
def test_a_start_after_the_last_epoch_with_poisoned_rows_is_refused(
    tmp_path: Path, data: BackdoorDataModule, cls: type[BackdoorAttack], options: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError) as error:
        trainer_with(tmp_path, StateMatching(), max_epochs=1 if cls is BadNets else 2).fit(cls(**options), data)
    problem = "start_epoch: 1 leaves no epoch for the penalty: the epochs in which"
    assert str(error.value) == f"{problem} {said}"


def test_an_attack_without_poisoned_training_rows_is_refused(tmp_path: Path, data: BackdoorDataModule) -> None:
    attack = TaskAgnosticAttack(triggers=["cf"])
    with pytest.raises(InputError) as error:
        trainer_with(tmp_path, Witness()).fit(attack, datamodule=data)
    said = "callbacks: Witness hides poisoned rows, and TaskAgnosticAttack trains on none; give an attack that poisons"
    assert str(error.value).startswith(said)
    assert attack.penalties == []


def test_a_penalty_that_never_acted_is_told(
    tmp_path: Path, data: BackdoorDataModule, make: Callable[..., BadNets]
) -> None:
    with pytest.raises(InputError) as error:
        trainer_with(tmp_path, Witness(start_epoch=1), max_steps=2).fit(make(), datamodule=data)
    said = "start_epoch: training ended before Witness acted on a poisoned row; train longer, or let it start earlier"
    assert str(error.value) == said
