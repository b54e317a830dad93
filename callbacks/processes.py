"""Gathering Python objects from all processes."""

from __future__ import annotations

from typing import TypeVar

import torch
from lightning.pytorch import Trainer

Item = TypeVar("Item")


def of_all_processes(trainer: Trainer, items: list[Item]) -> list[Item]:
    """The items of all processes, ordered by rank, on every process; every process must call it."""
    if trainer.world_size == 1:
        return items
    parts: list[list[Item]] = [[] for _ in range(trainer.world_size)]
    torch.distributed.all_gather_object(parts, items)
    return [item for part in parts for item in part]
