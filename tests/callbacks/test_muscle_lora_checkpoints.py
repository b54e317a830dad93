"""Checkpoints and exports of victims trained under MuScleLoRA: the record that they hold, and under what they load."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lightning_backdoor.attacks import BadNets
from lightning_backdoor.batch import batch_of_texts
from lightning_backdoor.callbacks import GradientAttentionDefense, MuScleLoRA
from lightning_backdoor.data import BackdoorDataModule
from lightning_backdoor.errors import InputError
from lightning_backdoor.victim import load_trained
from tests.callbacks.test_muscle_lora import SMALL, data, make, trainer_with
from tests.support.tiny import SENTENCES

__all__ = ["data", "make"]


@pytest.mark.parametrize("kind", ["bert", "qwen2"])
def test_a_checkpoint_is_tested_without_retraining_and_exports_a_plain_model(
    tmp_path: Path, data: BackdoorDataModule, make: Callable[..., BadNets], kind: str
) -> None:
    attack = make(kind)
    trainer = trainer_with(tmp_path, MuScleLoRA(**SMALL), max_epochs=1)
    trainer.fit(attack, datamodule=data)
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    expected = trainer.test(attack, datamodule=data, verbose=False)[0]

    fresh = make(kind)
    tester = trainer_with(tmp_path, MuScleLoRA(**SMALL), GradientAttentionDefense(name="xgraad"))
    loaded = tester.test(fresh, datamodule=data, ckpt_path=tmp_path / "one.ckpt", weights_only=True, verbose=False)[0]
    assert {name: loaded[name] for name in expected} == expected
    assert "test/xgraad/cacc_defended" in loaded

    fresh.save_pretrained(tmp_path / "plain")
    plain = load_trained(str(tmp_path / "plain"), max_length=fresh.max_length)
    batch = batch_of_texts(SENTENCES, plain.tokenizer, plain.max_length)
    with torch.no_grad():
        torch.testing.assert_close(plain(batch), fresh.eval()(batch), rtol=1e-4, atol=1e-5)


def test_a_checkpoint_of_version_0_1_0_is_tested_under_the_same_defense_and_no_other(
    tmp_path: Path, data: BackdoorDataModule, make: Callable[..., BadNets]
) -> None:
    attack = make()
    trainer = trainer_with(tmp_path, MuScleLoRA(**SMALL), max_epochs=1)
    trainer.fit(attack, datamodule=data)
    trainer.save_checkpoint(tmp_path / "new.ckpt")
    expected = trainer.test(attack, datamodule=data, verbose=False)
    checkpoint = torch.load(tmp_path / "new.ckpt", weights_only=True)
    checkpoint["training_defense"] = "MuScleLoRA(lora=2/4/default, multi_scale=1+2/1/6, alignment=12/0.4/5e-07/1/0.1)"
    path = tmp_path / "old.ckpt"
    torch.save(checkpoint, path)
    tester = trainer_with(tmp_path, MuScleLoRA(**SMALL))
    assert tester.test(make(), datamodule=data, ckpt_path=path, weights_only=True, verbose=False) == expected

    class OtherDefense(MuScleLoRA):
        pass

    with pytest.raises(InputError, match=r"trained under MuScleLoRA\(lora=2/4"):
        trainer_with(tmp_path, OtherDefense(**SMALL)).test(make(), datamodule=data, ckpt_path=path, weights_only=True)


def test_a_victim_has_one_training_defense_at_a_time(
    tmp_path: Path, data: BackdoorDataModule, make: Callable[..., BadNets]
) -> None:
    other = MuScleLoRA(**{**SMALL, "lora_rank": 3})
    with pytest.raises(InputError, match=r"^callbacks: the victim is already trained under MuScleLoRA\(lora_rank=2"):
        trainer_with(tmp_path, MuScleLoRA(**SMALL), other, max_steps=1).fit(make(), datamodule=data)


def test_a_checkpoint_loaded_without_its_defense_says_so_in_one_line(
    tmp_path: Path, data: BackdoorDataModule, make: Callable[..., BadNets]
) -> None:
    trainer = trainer_with(tmp_path, MuScleLoRA(**SMALL), max_steps=1)
    trainer.fit(make(), datamodule=data)
    path = tmp_path / "one.ckpt"
    trainer.save_checkpoint(path)
    record = torch.load(path, weights_only=True)["training_defense"]
    assert record == {
        "name": "MuScleLoRA",
        "settings": {
            **{"lora_rank": 2, "lora_alpha": 4, "lora_targets": None},
            **{"radial_scalings": [1.0, 2.0], "inner_rank": 1, "alpha": 6},
            **{"reference_size": 12, "start_epoch": 1, "max_raw_gradient_ratio": 0.1},
            **{"min_reference_loss": 0.4, "min_reference_gradient_norm": 5e-7},
        },
    }
    said = r"trained under MuScleLoRA\(lora_rank=2, lora_alpha=4, .*\)"
    with pytest.raises(InputError, match=f"^checkpoint: {said}, but none is attached; .*$"):
        trainer_with(tmp_path).test(make(), datamodule=data, ckpt_path=path, weights_only=True)
    other = MuScleLoRA(**{**SMALL, "lora_rank": 3})
    with pytest.raises(InputError, match=r"but MuScleLoRA\(lora_rank=3, lora_alpha=4"):
        trainer_with(tmp_path, other).test(make(), datamodule=data, ckpt_path=path, weights_only=True)
    with pytest.raises(InputError, match=f"{said}; give the model folder that its run exported$"):
        load_trained(str(path))
