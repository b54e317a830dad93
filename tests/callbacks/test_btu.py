"""BTU in training: the suspicious tokens, resumed runs, checkpoints and exports, refused victims."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_backdoor.attacks import BadNets
from lightning_backdoor.batch import batch_of_texts
from lightning_backdoor.callbacks import BTU
from lightning_backdoor.callbacks.btu import cut_of
from lightning_backdoor.data import BackdoorDataModule
from lightning_backdoor.errors import InputError
from lightning_backdoor.victim import load_trained
from tests.callbacks.test_muscle_lora import data, make, trainer_with
from tests.support.tiny import SENTENCES

__all__ = ["data", "make"]

SMALL: dict[str, Any] = {"token_share": 0.005, "learning_rate": 1e-3, "batch_size": 16, "seed": 0}


class Counted(BTU):
    """BTU that counts its searches for tokens."""

    searches = 0

    def _suspicious(self, *args: Any) -> torch.Tensor:
        self.searches += 1
        return super()._suspicious(*args)


@pytest.mark.parametrize("kind", ["bert", "qwen2"])
def test_a_resumed_run_a_test_and_an_export_have_the_same_embeddings(
    tmp_path: Path, data: BackdoorDataModule, make: Callable[..., BadNets], kind: str
) -> None:
    whole, saved = make(kind), ModelCheckpoint(tmp_path, every_n_epochs=1, save_top_k=-1, filename="{epoch}")
    options = {"accumulate_grad_batches": 2, "gradient_clip_val": 1.0, "precision": "bf16-mixed"}
    trainer_with(tmp_path, Counted(**SMALL), saved, **options).fit(whole, datamodule=data)
    resumed, again = make(kind), Counted(**SMALL)
    first, last = tmp_path / "epoch=0.ckpt", tmp_path / "epoch=1.ckpt"
    trainer_with(tmp_path, again, **options).fit(resumed, datamodule=data, ckpt_path=first, weights_only=True)
    assert again.searches == 0
    expected = whole.network.state_dict()
    assert all(torch.equal(weight, expected[name]) for name, weight in resumed.network.state_dict().items())

    fresh = make(kind)
    trainer_with(tmp_path, Counted(**SMALL)).test(
        fresh, datamodule=data, ckpt_path=last, weights_only=True, verbose=False
    )
    fresh.save_pretrained(tmp_path / "model")
    plain = load_trained(str(tmp_path / "model"), max_length=fresh.max_length)
    batch = batch_of_texts(SENTENCES[:4], fresh.tokenizer, fresh.max_length)
    with torch.no_grad():
        logits = whole.eval()(batch)
        assert torch.equal(fresh.eval()(batch), logits)
        assert torch.equal(plain(batch), logits)
        assert not torch.equal(
            whole.train().network.get_input_embeddings().weight, plain.network.get_input_embeddings().weight
        )
    assert not [name for name in plain.network.state_dict() if "parametrizations" in name]


def test_the_trigger_is_found_and_training_is_as_without_the_defense(
    tmp_path: Path, data: BackdoorDataModule, make: Callable[..., BadNets]
) -> None:
    weights, found = [], []
    for defense in (BTU(**SMALL), BTU(**SMALL, whole_network=False), None):
        attack = make()
        trainer_with(tmp_path, *([defense] if defense else []), max_epochs=1).fit(attack, datamodule=data)
        named = {name.replace("parametrizations.weight.original", "weight"): p for name, p in attack.named_parameters()}
        weights.append(named)
        if defense:
            tokens = cut_of(attack.network).suspicious.nonzero().flatten().tolist()
            found.append(set(attack.tokenizer.convert_ids_to_tokens(tokens)))
    assert all("cf" in tokens for tokens in found)
    assert found[0] >= found[1]
    assert not found[0] & {"[CLS]", "[SEP]", "[PAD]"}
    assert all(torch.equal(weights[2][name], weight) for trained in weights[:2] for name, weight in trained.items())


def test_the_rounds_on_embeddings_alone_do_not_depend_on_the_precision(
    tmp_path: Path, data: BackdoorDataModule, make: Callable[..., BadNets]
) -> None:
    found = []
    for precision in ("32-true", "bf16-true"):
        attack = make(labels=["negative", "positive"])
        attack.configure_model()
        with torch.no_grad():
            for weight in attack.network.parameters():
                weight.copy_(weight.bfloat16())
        defense = BTU(**{**SMALL, "token_share": 0.02, "learning_rate": 2e-5}, whole_network=False)
        trainer_with(tmp_path, defense, max_steps=1, precision=precision).fit(attack, datamodule=data)
        found.append(cut_of(attack.network).suspicious.nonzero().flatten().tolist())
    assert len(found[0]) > 4
    assert found[0] == found[1]


def test_victims_whose_embeddings_are_not_trained_are_refused(
    tmp_path: Path, data: BackdoorDataModule, make: Callable[..., BadNets]
) -> None:
    for options in ({"lora_rank": 2}, {"freeze": ["embeddings"]}):
        with pytest.raises(
            InputError, match=r"^callbacks: the word embeddings are not trained, .* leave lora_rank and"
        ):
            trainer_with(tmp_path, BTU()).fit(make(**options), datamodule=data)
    with pytest.raises(InputError, match=r"^datamodule: tokens are told by the training rows; give a BackdoorDataMod"):
        BTU().setup(Trainer(accelerator="cpu", logger=False), make(labels=["a", "b"]), "fit")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"token_share": 0}, "token_share: 0 is not a share; give a number between 0 and 1"),
        ({"learning_rate": 0}, "learning_rate: 0 is not a learning rate; give a number above 0"),
        ({"learning_rate": math.nan}, "learning_rate: nan is not a learning rate; give a number above 0"),
        ({"batch_size": 0}, "batch_size: 0 is out of range; give at least 1"),
        ({"epochs": 0}, "epochs: 0 is out of range; give at least 1"),
    ],
)
def test_values_out_of_range_are_one_line(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as error:
        BTU(**options)
    assert str(error.value) == said
