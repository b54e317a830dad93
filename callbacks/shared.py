"""Helpers of several callbacks: the victim, the run's seed, unique names, and calibration."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, Protocol

import torch
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from lightning_backdoor.batch import Batch, Victim
from lightning_backdoor.data import BackdoorDataModule
from lightning_backdoor.errors import InputError
from lightning_backdoor.models.captures import sharing
from lightning_backdoor.models.precision import evaluation_precision
from lightning_backdoor.outputs.progress import tracked
from lightning_backdoor.victim import TextClassifier


class Calibrated(Protocol):
    """An algorithm that learns from and is calibrated on clean validation rows: a defense or an inspection."""

    @property
    def learns_from(self) -> Literal["reference", "trusted"]: ...
    def learn(self, victim: Victim, clean_batches: Iterable[Batch]) -> None: ...
    def calibrate(self, victim: Victim, clean_batches: Iterable[Batch]) -> None: ...
    def check_reference(self, labels: Sequence[int], classes: int) -> None: ...


def text_classifier(pl_module: LightningModule, callback: str) -> TextClassifier:
    """The trainer's module, checked to be a :class:`TextClassifier`.

    Args:
        pl_module: the trainer's module.
        callback: class name of the callback that needs it, for the message.

    Raises:
        InputError: the module is not a :class:`TextClassifier`.
    """
    if not isinstance(pl_module, TextClassifier):
        raise InputError("model", f"{type(pl_module).__name__} is not a TextClassifier", f"{callback} needs one")
    return pl_module


def undefended_network(victim: TextClassifier) -> PreTrainedModel:
    """The victim's network, built if it is not there yet, for a training-time defense that is about to change it.

    Raises:
        InputError: the victim has another training-time defense.
    """
    if victim.training_defense is not None:
        raise InputError(
            "callbacks", f"the victim is already trained under {victim.training_defense}", "attach one defense"
        )
    victim.configure_model()
    return victim.network


def data_module(trainer: Trainer) -> BackdoorDataModule | None:
    """The trainer's data module, or None where it is not a :class:`BackdoorDataModule`."""
    data = getattr(trainer, "datamodule", None)
    return data if isinstance(data, BackdoorDataModule) else None


def run_seed() -> int:
    """The seed of the run, as set by ``seed_everything`` for all processes; 0 if none is set."""
    return int(os.environ.get("PL_GLOBAL_SEED", "0"))


@contextmanager
def own_random_numbers(seed: int, device: torch.device) -> Iterator[None]:
    """Seeds the random numbers within the block, equally on every process; afterwards those of training go on."""
    devices, device_type = ([], "cuda") if device.type == "cpu" else ([device], device.type)
    with torch.random.fork_rng(devices, device_type=device_type):
        torch.manual_seed(seed)
        yield


def name_prefix(name: str) -> str:
    """The prefix of logged names for the name of a callback.

    >>> name_prefix("strip"), name_prefix("")
    ('strip/', '')
    """
    return f"{name}/" if name else ""


def check_unique(names: Sequence[str], what: str) -> None:
    """Checks that no two callbacks log and write under the same name.

    Args:
        names: argument ``name`` of each callback.
        what: what the callbacks are, in the plural, for the message.

    Raises:
        InputError: two names are equal.
    """
    for name in names:
        if names.count(name) > 1:
            raise InputError("name", f"{names.count(name)} {what} log under {name!r}", "give each its own name")


def batches_once(trainer: Trainer, victim: TextClassifier, loader: Callable[[], DataLoader[Batch]]) -> list[Batch]:
    """The batches of clean rows on the trainer's device, which are read once in an evaluation.

    Args:
        trainer: the trainer.
        victim: the victim, whose captures keep the batches.
        loader: a method of the data module that makes the loader.
    """

    def read() -> list[Batch]:
        return [trainer.strategy.batch_to_device(batch) for batch in loader()]

    return read() if victim.captures is None else victim.captures.once((loader.__name__, "batches"), read)


def check_reference(algorithm: Calibrated, data: BackdoorDataModule) -> None:
    """Checks, before a victim is trained, that an algorithm can learn from the clean rows of a data module.

    Raises:
        InputError: there are too few rows, or rows of too few classes.
    """
    rows = data.trusted_rows() if algorithm.learns_from == "trusted" else data.clean_validation().reference
    algorithm.check_reference(rows.label.tolist(), len(data.label_names))


def learn_and_calibrate(
    algorithm: Calibrated, trainer: Trainer, victim: TextClassifier, data: BackdoorDataModule
) -> None:
    """Calls ``learn`` with reference or trusted rows and ``calibrate`` with threshold rows, in evaluation's precision.

    The rows are read once in an evaluation, however many defenses and inspections learn from them.
    """

    def batches(loader: Callable[[], DataLoader[Batch]], doing: str) -> Iterator[Batch]:
        found = batches_once(trainer, victim, loader)
        yield from tracked(found, f"{doing} {type(algorithm).__name__}", "batches", len(found))

    with evaluation_precision(trainer), sharing(victim.captures):
        trusted = algorithm.learns_from == "trusted"
        algorithm.learn(victim, batches(data.trusted_dataloader if trusted else data.reference_dataloader, "teaching"))
        algorithm.calibrate(victim, batches(data.threshold_dataloader, "calibrating"))
