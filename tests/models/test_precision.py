"""Mixed precision concerns training alone: what is computed in float32 and what is not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lightning_backdoor.attacks import BadNets
from lightning_backdoor.batch import Batch
from lightning_backdoor.callbacks import GradientAttentionDefense
from lightning_backdoor.models.precision import evaluation_precision
from tests.support.reviews import reviews


class Watched(BadNets):
    """Records by stage whether autocast is on in the forward pass, and the type of the logits."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.seen: set[tuple[bool, bool, torch.dtype]] = set()

    def forward(self, batch: Batch) -> Tensor:
        logits = super().forward(batch)
        self.seen.add((self.training, torch.is_autocast_enabled("cpu"), logits.dtype))
        return logits


def trainer_with(folder: Path, precision: str, *callbacks: Any) -> Trainer:
    return Trainer(
        accelerator="cpu",
        precision=precision,  # type: ignore[arg-type]
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=[*callbacks],
    )


@pytest.mark.parametrize(
    ("precision", "training", "evaluation"),
    [
        ("bf16-mixed", (True, torch.bfloat16), (False, torch.float32)),
        ("bf16-true", (False, torch.bfloat16), (False, torch.bfloat16)),
    ],
)
def test_only_training_is_in_mixed_precision(
    tmp_path: Path, tiny_folder: Callable[[str], str], precision: str, training: Any, evaluation: Any
) -> None:
    victim, data = Watched(model=tiny_folder("bert"), poison_rate=0.2), reviews(tmp_path, 120)
    trainer = trainer_with(tmp_path, precision, GradientAttentionDefense())
    trainer.fit(victim, datamodule=data)
    trainer.test(victim, datamodule=data, verbose=False)
    trainer.predict(victim, datamodule=data)
    assert victim.seen == {(True, *training), (False, *evaluation)}


def test_metrics_in_mixed_precision_are_those_of_float32(tmp_path: Path, tiny_folder: Callable[[str], str]) -> None:
    victim, data = BadNets(model=tiny_folder("bert")), reviews(tmp_path, 120)
    victim.hparams["labels"] = ["negative", "positive"]
    victim.configure_model()
    victim.new_head = None
    logged = []
    for precision in ("32-true", "bf16-mixed"):
        trainer = trainer_with(tmp_path, precision, GradientAttentionDefense())
        trainer.test(victim, datamodule=data, verbose=False)
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if "overhead" not in name}
        logged.append(metrics)
    assert logged[0] == pytest.approx(logged[1], rel=0, nan_ok=True)


def test_a_callback_evaluates_in_the_precision_of_the_weights(tmp_path: Path) -> None:
    trainer = trainer_with(tmp_path, "bf16-mixed")
    trainer.strategy.connect(LightningModule())
    with trainer.precision_plugin.forward_context():
        assert torch.is_autocast_enabled("cpu")
        with evaluation_precision(trainer):
            assert not torch.is_autocast_enabled("cpu")
        assert torch.is_autocast_enabled("cpu")
    with evaluation_precision(trainer_with(tmp_path, "bf16-true")):
        assert torch.get_default_dtype() == torch.bfloat16
