"""Attacks on the pre-trained encoder: the stage, its cache, and triggers whose label is found on validation rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from torch import Tensor

from lightning_backdoor.attacks import POR, BadPre, NeuBA, Poisoned, pretraining
from lightning_backdoor.attacks.masking import encode, masked, masked_language_loss, next_token_loss
from lightning_backdoor.attacks.pretrained_encoder import PretrainedEncoderAttack
from lightning_backdoor.attacks.pretraining import Stage, plain_texts
from lightning_backdoor.errors import Diverged, InputError
from lightning_backdoor.models.config_file import STATEMENT, read_object
from lightning_backdoor.testing import check_attack
from lightning_backdoor.victim import TextClassifier
from tests.support.reviews import reviews
from tests.support.tiny import DECODER, ENCODERS, SENTENCES, loaded

#: arguments by which a stage takes a moment.
QUICK: dict[str, Any] = {"pretraining_rows": 16, "pretraining_batch_size": 4, "pretraining_epochs": 2}
CLASSES = (NeuBA, POR, BadPre)


@pytest.fixture
def texts(tmp_path: Path) -> str:
    path = tmp_path / "plain.txt"
    path.write_text("\n".join(SENTENCES), encoding="utf-8")
    return str(path)


def fit(folder: Path, attack: TextClassifier, **options: Any) -> Trainer:
    seed_everything(0, verbose=False)
    defaults = {"max_epochs": 1, "logger": False, "enable_checkpointing": False, "accelerator": "cpu"}
    defaults |= {"enable_progress_bar": False, "enable_model_summary": False, "default_root_dir": folder}
    trainer = Trainer(**{**defaults, **options})
    trainer.fit(attack, datamodule=reviews(folder, 120))
    return trainer


def of(cls: type[PretrainedEncoderAttack], model: str, texts: str, **options: Any) -> PretrainedEncoderAttack:
    return cls(model=model, pretraining_files=[texts], triggers=["cf", "watch"], **{**QUICK, **options})


def encoders(folder: Path) -> list[Path]:
    return sorted(path for path in (folder / "cache" / "pretrained").iterdir() if path.is_dir())


@pytest.mark.parametrize("cls", CLASSES)
def test_the_contract_is_kept(cls: type[PretrainedEncoderAttack], texts: str) -> None:
    check_attack(cls(triggers=["good", "bad"], pretraining_files=[texts], **QUICK))
