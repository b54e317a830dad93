"""ABL in training: the stages and their losses, the isolation on several processes, resumed runs, refused victims."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.nn.functional import cross_entropy

from lightning_backdoor.attacks import LWS, BadNets
from lightning_backdoor.batch import Batch, batch_of_texts
from lightning_backdoor.callbacks import ABL
from lightning_backdoor.commands.run_checkpoints import checkpoint_callbacks
from lightning_backdoor.data import BackdoorDataModule
from lightning_backdoor.errors import InputError
from tests.callbacks.test_muscle_lora import data, make, trainer_with

__all__ = ["data", "make"]


class Witness(ABL):
    """ABL that keeps epoch, losses, row indices and loss of every step."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"isolation_rate": 0.1, "turning_point": 0.25, **options})
        self.steps: list[tuple[int, list[float], list[int], float]] = []

    def _loss(self, losses: Tensor, batch: Batch) -> Tensor:
        loss = super()._loss(losses, batch)
        self.steps.append((self._epoch, losses.tolist(), batch["index"].tolist(), float(loss)))
        return loss

    @property
    def isolated(self) -> set[int]:
        assert self._isolated is not None
        return set(self._isolated.tolist())


def test_rows_that_share_an_index_are_refused_since_one_would_be_isolated_with_the_other(
    tmp_path: Path, data: BackdoorDataModule, make: Callable[..., BadNets], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = data.training_rows()
    with_copy = rows + rows.take([7])
    monkeypatch.setattr(data, "training_rows", lambda: with_copy)
    said = rf"^index: 2 training rows have {rows.index[7]}, and ABL isolates rows by it; give each row"
    with pytest.raises(InputError, match=said):
        trainer_with(tmp_path, Witness(), max_epochs=2).fit(make(), datamodule=data)


@pytest.mark.parametrize("unlearning_epochs", [None, 2])
@pytest.mark.parametrize("kind", ["bert", "qwen2"])
def test_each_stage_has_its_loss(
    tmp_path: Path, data: BackdoorDataModule, make: Callable[..., BadNets], kind: str, unlearning_epochs: int | None
) -> None:
    defense = Witness(unlearning_epochs=unlearning_epochs)
    options = {"max_epochs": 4, "accumulate_grad_batches": 2, "gradient_clip_val": 1.0, "precision": "bf16-mixed"}
    trainer_with(tmp_path, defense, **options).fit(make(kind), datamodule=data)
    assert len(defense.isolated) == 6  # of 64
    assert [epoch for epoch, *_ in defense.steps] == [epoch for epoch in range(4) for _ in range(8)]
    for epoch, losses, rows, loss in defense.steps:
        if epoch < 1:
            expected = sum(value if value > 0.5 else -value for value in losses) / len(losses)
        else:
            kept = [value for value, row in zip(losses, rows, strict=True) if row not in defense.isolated]
            out = [value for value, row in zip(losses, rows, strict=True) if row in defense.isolated]
            unlearns = unlearning_epochs is None or epoch >= 2
            expected = sum(kept) / max(1, len(kept)) - (sum(out) / max(1, len(out)) if unlearns else 0)
        assert loss == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_the_rows_with_the_lowest_losses_are_isolated_whatever_the_number_of_processes(
    tmp_path: Path, data: BackdoorDataModule, make: Callable[..., BadNets]
) -> None:
    attack, defense = make(), Witness()
    trainer = trainer_with(tmp_path, defense, max_epochs=2, max_steps=8)
    trainer.fit(attack, datamodule=data)
    rows = data.training_rows()
    losses = []
    for row in rows:
        batch = batch_of_texts([row["text"]], attack.tokenizer, attack.max_length)
        with torch.no_grad():
            losses.append(float(cross_entropy(attack.eval()(batch), torch.tensor([row["label"]]))))
    expected = [int(rows.index[i]) for i in sorted(sorted(range(64), key=lambda i: losses[i])[:6])]
    assert defense._isolate(trainer, attack, data).tolist() == expected

    of_processes: list[Tensor] = []

    def process(rank: int) -> Any:
        def reduce(part: Tensor, reduce_op: str) -> Tensor:
            of_processes.append(part.clone())
            return torch.stack(of_processes).sum(dim=0)

        plain = trainer.strategy
        strategy = SimpleNamespace(
            reduce=reduce, batch_to_device=plain.batch_to_device, root_device=plain.root_device, broadcast=lambda x: x
        )
        return SimpleNamespace(
            global_rank=rank, world_size=3, strategy=strategy, precision_plugin=trainer.precision_plugin
        )

    found = [defense._isolate(process(rank), attack, data).tolist() for rank in range(3)]
    assert found[-1] == expected
    assert all((part != 0).sum() < 64 for part in of_processes)
    assert torch.stack([part != 0 for part in of_processes]).sum(dim=0).tolist() == [1] * 64


def test_a_resumed_run_keeps_the_isolated_rows_and_ends_with_the_same_weights(
    tmp_path: Path, data: BackdoorDataModule, make: Callable[..., BadNets]
) -> None:
    whole, defense = make(), Witness()
    saved = ModelCheckpoint(tmp_path, every_n_epochs=1, save_top_k=-1, filename="{epoch}")
    trainer_with(tmp_path, defense, saved, max_epochs=3).fit(whole, datamodule=data)
    for epoch in (0, 1):  # before and after the isolation
        resumed, again = make(), Witness()
        path = tmp_path / f"epoch={epoch}.ckpt"
        trainer_with(tmp_path, again, max_epochs=3).fit(resumed, datamodule=data, ckpt_path=path, weights_only=True)
        assert again.isolated == defense.isolated
        assert again.steps == defense.steps[8 * (epoch + 1) :]
        expected = whole.network.state_dict()
        assert all(torch.equal(weight, expected[name]) for name, weight in resumed.network.state_dict().items())
    assert whole.row_loss is None


def test_the_last_epoch_is_kept_as_the_best(tmp_path: Path, data: BackdoorDataModule) -> None:
    attack = BadNets()
    best, _ = checkpoint_callbacks(attack, data, tmp_path, validated=True, callbacks=[ABL()])
    assert (best.monitor, best.mode) == ("epoch", "max")
    best, _ = checkpoint_callbacks(attack, data, tmp_path, validated=True)
    assert best.monitor == "val/cacc"


def test_what_cannot_be_trained_so_is_refused_before_training(
    tmp_path: Path, data: BackdoorDataModule, make: Callable[..., BadNets]
) -> None:
    def said(victim: BadNets | LWS, defense: ABL, **options: Any) -> str:
        with pytest.raises(InputError) as error:
            trainer_with(tmp_path, defense, **options).fit(victim, datamodule=data)
        return str(error.value)

    few = said(make(), ABL(), max_epochs=1)
    assert few == "max_epochs: 1 are too few for 1 before the isolation and 1 that unlearn; give at least 2"
    lws = LWS(model=make().hparams["model"])
    assert said(lws, ABL()).startswith("callbacks: LWS trains by a loss of its own, and rows cannot be unlearned")
    with pytest.raises(InputError, match=r"^datamodule: rows are isolated by their index"):
        ABL().setup(Trainer(accelerator="cpu", logger=False), make(labels=["a", "b"]), "fit")


def test_it_can_be_tried_on_a_few_batches(
    tmp_path: Path, data: BackdoorDataModule, make: Callable[..., BadNets]
) -> None:
    for defense in (ABL(), ABL(unlearning_epochs=3)):
        trainer = trainer_with(tmp_path, defense, fast_dev_run=True)
        trainer.fit(make(), datamodule=data)
        assert trainer.global_step == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"turning_point": 0}, "turning_point: 0 is not a share; give a number between 0 and 1"),
        ({"isolation_rate": 1}, "isolation_rate: 1 is not a share; give a number between 0 and 1"),
        ({"gamma": -1}, "gamma: -1 is out of range; give 0 or more"),
        ({"gamma": math.nan}, "gamma: nan is out of range; give 0 or more"),
        ({"unlearning_epochs": 0}, "unlearning_epochs: 0 unlearns nothing; give at least 1"),
    ],
)
def test_values_out_of_range_are_one_line(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as error:
        ABL(**options)
    assert str(error.value) == said
