"""Low-capacity training and moderate fitting: what is trained, checkpoints, resumed runs, and exports."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_backdoor.attacks import BadNets
from lightning_backdoor.batch import batch_of_texts
from lightning_backdoor.callbacks import LowCapacity, ModerateFitting
from lightning_backdoor.cli import main
from lightning_backdoor.data import BackdoorDataModule
from lightning_backdoor.errors import InputError
from lightning_backdoor.victim import load_trained
from tests.callbacks.test_muscle_lora import data, make, trainer_with
from tests.support.tiny import SENTENCES

__all__ = ["data", "make"]

Defense = Callable[[], LowCapacity]
MERGED: list[Defense] = [lambda: LowCapacity("lora", 2), ModerateFitting]
KEPT: list[Defense] = [
    lambda: LowCapacity("adapter", 2),
    lambda: LowCapacity("prefix", 2, prefix_hidden=8),
    lambda: ModerateFitting("adapter", 4),
]


@pytest.mark.parametrize("kind", ["bert", "qwen2"])
@pytest.mark.parametrize("defense", MERGED + KEPT)
def test_a_checkpoint_is_tested_as_it_was_trained_and_exported_plain_or_not_at_all(
    tmp_path: Path, data: BackdoorDataModule, make: Callable[..., BadNets], kind: str, defense: Defense
) -> None:
    attack = make(kind)
    trainer = trainer_with(tmp_path, defense(), max_epochs=1, max_steps=3, precision="bf16-mixed")
    trainer.fit(attack, datamodule=data)
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    fresh = make(kind)
    trainer_with(tmp_path, defense()).test(
        fresh, datamodule=data, ckpt_path=tmp_path / "one.ckpt", weights_only=True, verbose=False
    )
    batch = batch_of_texts(SENTENCES[:4], fresh.tokenizer, fresh.max_length)
    with torch.no_grad():
        logits = attack.eval()(batch)
        assert torch.equal(fresh.eval()(batch), logits)
        fresh.save_pretrained(tmp_path / "model")
        if defense in MERGED:
            plain = load_trained(str(tmp_path / "model"), max_length=fresh.max_length)
            torch.testing.assert_close(plain(batch), logits, rtol=1e-4, atol=1e-5)
            return
    with pytest.raises(InputError, match=r"model holds a network that cannot be turned into a plain model; test the"):
        load_trained(str(tmp_path / "model"))
    with pytest.raises(InputError, match=r"which no plain model has; test the victim's checkpoint under the same def"):
        fresh.plain_network()
    with pytest.raises(InputError, match=r"was trained under (LowCapacity|ModerateFitting)\(method="):
        load_trained(str(tmp_path / "one.ckpt"))


@pytest.mark.parametrize(("method", "part"), [("lora", "lora_"), ("adapter", ".up."), ("prefix", "prefix.")])
@pytest.mark.parametrize("head", [False, True])
def test_all_other_weights_stay_as_they_were(
    tmp_path: Path, data: BackdoorDataModule, make: Callable[..., BadNets], method: Any, part: str, head: bool
) -> None:
    attack, defense = make(labels=["negative", "positive"]), LowCapacity(method, 2, head=head)
    trainer = trainer_with(tmp_path, defense, max_steps=2)
    defense.setup(trainer, attack, "validate")
    before = {name: weight.clone() for name, weight in attack.network.state_dict().items()}
    trainer.fit(attack, datamodule=data)
    after = attack.network.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert any(part in name for name in moved)
    trained = ("lora_", ".up.", ".down.", "prefix.", *(("pooler", "classifier") if head else ()))
    assert all(any(word in name for word in trained) for name in moved)
    assert ("classifier.weight" in moved) == head


def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(
    tmp_path: Path, data: BackdoorDataModule, make: Callable[..., BadNets]
) -> None:
    whole, saved = make(), ModelCheckpoint(tmp_path, every_n_epochs=1, save_top_k=-1, filename="{epoch}")
    trainer_with(tmp_path, ModerateFitting("adapter", 4), saved).fit(whole, datamodule=data)
    resumed, path = make(), tmp_path / "epoch=0.ckpt"
    trainer_with(tmp_path, ModerateFitting("adapter", 4)).fit(
        resumed, datamodule=data, ckpt_path=path, weights_only=True
    )
    expected = whole.network.state_dict()
    assert all(torch.equal(weight, expected[name]) for name, weight in resumed.network.state_dict().items())


def test_fit_says_that_a_prefix_cannot_be_exported(inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--trainer.callbacks+=LowCapacity", "--trainer.callbacks.method", "prefix"]
    options += ["--data.max_rows", '{"train": 40, "test": 20}', "--run_dir", "prefix"]
    assert main(["fit", "-c", "data.yaml", *options]) == 0
    said = capsys.readouterr().out
    assert "the model folder cannot be loaded as a model, since a prefix adds keys and values" in said
    assert "lightning-backdoor test --config" in said
    assert "lightning-backdoor scan" not in said
    files = {path.name for path in Path("prefix/model").iterdir()}
    assert {"network.safetensors", "README.md", "config.json"} <= files
    card = Path("prefix/model/README.md").read_text(encoding="utf-8")
    assert "not a model that transformers loads" in card
    assert "library_name" not in card


def test_the_victims_own_lora_is_refused(
    tmp_path: Path, data: BackdoorDataModule, make: Callable[..., BadNets]
) -> None:
    with pytest.raises(InputError, match=r"^lora_rank: the victim has LoRA of its own; leave it out$"):
        trainer_with(tmp_path, LowCapacity()).fit(make(lora_rank=2), datamodule=data)
    with pytest.raises(InputError, match=r"^targets: the model has no layers \['attn'\]"):
        trainer_with(tmp_path, LowCapacity(targets=["attn"])).fit(make(), datamodule=data)
    victim = make()
    with pytest.raises(InputError, match=r"^callbacks: the victim is already trained under LowCapacity\(method=lora"):
        trainer_with(tmp_path, LowCapacity("lora", 2), LowCapacity("adapter", 2)).fit(victim, datamodule=data)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"method": "adapters"}, "method: 'adapters' is not known; give lora, adapter or prefix"),
        ({"size": 0}, "size: 0 is out of range; give at least 1"),
        ({"prefix_hidden": 0}, "prefix_hidden: 0 is out of range; give at least 1"),
        ({"bottleneck": 0}, "bottleneck: 0 is out of range; give at least 1, or leave it out"),
    ],
)
def test_values_out_of_range_are_one_line(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as error:
        LowCapacity(**options)
    assert str(error.value) == said


def test_moderate_fitting_has_the_published_settings() -> None:
    assert ModerateFitting().record().settings == {
        "method": "lora",
        "size": 8,
        "head": True,
        "alpha": 16,
        "targets": None,
        "bottleneck": 2,
    }
    assert ModerateFitting("adapter").record().settings["size"] == 24
