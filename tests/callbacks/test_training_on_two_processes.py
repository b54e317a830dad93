"""In-training defenses on two processes: both decide and train alike, and decide as one process does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_backdoor.attacks import BadNets
from lightning_backdoor.callbacks import ABL, BTU, LowCapacity, ModerateFitting
from lightning_backdoor.callbacks.btu import cut_of
from lightning_backdoor.data import BackdoorDataModule
from lightning_backdoor.victim import TextClassifier
from tests.callbacks.test_muscle_lora import data, make, trainer_with

__all__ = ["data", "make"]

DEFENSES: dict[str, Callable[[], Callback]] = {
    "ABL": lambda: ABL(isolation_rate=0.1, turning_point=0.25),
    "BTU": lambda: BTU(token_share=0.005, learning_rate=1e-3, batch_size=16, seed=0),
    "LoRA": lambda: LowCapacity("lora", 2),
    "adapters": lambda: LowCapacity("adapter", 2),
    "moderate fitting": lambda: ModerateFitting(),
}


class Witness(Callback):
    """Writes what a process decided, and its weights, when training ends."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, TextClassifier)
        found = {"decided": decided(trainer, pl_module), "weights": pl_module.network.state_dict()}
        torch.save(found, self.folder / f"{trainer.world_size}-{trainer.global_rank}.pt")


def decided(trainer: Trainer, victim: TextClassifier) -> Any:
    """The isolated rows of ABL, the suspicious tokens of BTU; other defenses decide nothing."""
    defense = next(c for c in trainer.callbacks if isinstance(c, (ABL, BTU, LowCapacity)))  # type: ignore[attr-defined]
    if isinstance(defense, ABL):
        return sorted(defense.state_dict()["isolated"])
    return cut_of(victim.network).suspicious.nonzero().flatten().tolist() if isinstance(defense, BTU) else None


@pytest.mark.parametrize("name", DEFENSES)
def test_two_processes_train_alike(
    tmp_path: Path, data: BackdoorDataModule, make: Callable[..., BadNets], name: str
) -> None:
    trainer_with(tmp_path, DEFENSES[name](), Witness(tmp_path)).fit(make(), datamodule=data)
    parallel = {"devices": 2, "strategy": "ddp_fork"}
    trainer_with(tmp_path, DEFENSES[name](), Witness(tmp_path), **parallel).fit(make(), datamodule=data)
    one, first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in ("1-0", "2-0", "2-1"))
    assert first["decided"] == second["decided"]
    assert all(torch.equal(weight, second["weights"][key]) for key, weight in first["weights"].items())
    if name == "BTU":  # decided before training, in which two processes take two batches a step
        assert first["decided"] == one["decided"] != []
