"""Gathering Python objects from all processes, and stopping all of them for a diverged victim."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from lightning.pytorch import LightningModule, Trainer

from lightning_backdoor.errors import InputError
from lightning_backdoor.victim.evaluation import EvaluatedClassifier

Item = TypeVar("Item")


def of_all_processes(trainer: Trainer, items: list[Item]) -> list[Item]:
    """The items of all processes, ordered by rank, on every process; every process must call it."""
    if trainer.world_size == 1:
        return items
    parts: list[list[Item]] = [[] for _ in range(trainer.world_size)]
    torch.distributed.all_gather_object(parts, items)
    return [item for part in parts for item in part]


def result_of_each(trainer: Trainer, name: str, compute: Callable[[], Item]) -> list[Item]:
    """What a function returns in each process, ordered by rank, on every process; every process must call it.

    Args:
        trainer: the trainer.
        name: what computes it, for the message.
        compute: the function, which does not return None.

    Raises:
        InputError: it failed in another process.
    """
    own: Item | None = None
    try:
        own = compute()
    finally:  # also after an error, for which the other processes must not wait
        parts = of_all_processes(trainer, [own])
    found = [part for part in parts if part is not None]
    if len(found) < len(parts):
        raise InputError(name, "it failed in another process", "see that process's message")
    return found


def check_logits_of_all(pl_module: LightningModule) -> None:
    """Checks the victim's logits before results are written; every process must call it.

    Raises:
        Diverged: on any process, a logit of the victim was NaN or infinite.
    """
    if isinstance(pl_module, EvaluatedClassifier):
        pl_module.check_logits()
