"""Gathering Python objects from all processes, and stopping all of them for a diverged victim."""

from __future__ import annotations

from typing import TypeVar

import torch
from lightning.pytorch import LightningModule, Trainer

from lightning_backdoor.victim.evaluation import EvaluatedClassifier

Item = TypeVar("Item")


def of_all_processes(trainer: Trainer, items: list[Item]) -> list[Item]:
    """The items of all processes, ordered by rank, on every process; every process must call it."""
    if trainer.world_size == 1:
        return items
    parts: list[list[Item]] = [[] for _ in range(trainer.world_size)]
    torch.distributed.all_gather_object(parts, items)
    return [item for part in parts for item in part]


def check_logits_of_all(pl_module: LightningModule) -> None:
    """Checks the victim's logits before results are written; every process must call it.

    Raises:
        Diverged: on any process, a logit of the victim was NaN or infinite.
    """
    if isinstance(pl_module, EvaluatedClassifier):
        pl_module.check_logits()
