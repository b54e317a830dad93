"""MuScleLoRA in training: its reference batches and gradients, the record in its checkpoints, and its export."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.optim import Optimizer

from lightning_backdoor.attacks import BadNets
from lightning_backdoor.batch import Batch
from lightning_backdoor.callbacks import MuScleLoRA
from lightning_backdoor.data import BackdoorDataModule
from lightning_backdoor.errors import InputError
from lightning_backdoor.victim import load_trained
from tests.support.forked import forked_pair
from tests.support.reviews import reviews

SMALL: dict[str, Any] = {"lora_rank": 2, "lora_alpha": 4, "radial_scalings": [1, 2], "reference_size": 12, "seed": 0}


@pytest.fixture
def data(tmp_path: Path) -> BackdoorDataModule:
    return reviews(tmp_path, rows=240, validation_share=0.3, max_rows={"train": 64, "test": 24})


@pytest.fixture
def make(tiny_folder: Callable[[str], str]) -> Callable[..., BadNets]:
    def attack(kind: str = "bert", **options: Any) -> BadNets:
        seed_everything(0, verbose=False)
        return BadNets(model=tiny_folder(kind), learning_rate=1e-2, **options)

    return attack


def trainer_with(folder: Path, *callbacks: Callback, **options: Any) -> Trainer:
    return Trainer(
        **{
            "accelerator": "cpu",
            "max_epochs": 2,
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "enable_checkpointing": any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
            "default_root_dir": folder,
            "callbacks": list(callbacks),
            **options,
        }
    )


class Gradients(Callback):
    """Keeps the gradients before and after the callbacks between its two copies have changed them."""

    def __init__(self) -> None:
        self.kept: list[list[torch.Tensor]] = []

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        self.kept.append([p.grad.clone() for p in pl_module.parameters() if p.grad is not None])


class References(MuScleLoRA):
    """MuScleLoRA that keeps its reference batches and their gradients."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.texts: list[list[str]] = []
        self.gradients: list[list[torch.Tensor]] = []

    def _batches(self, *args: Any) -> list[Batch]:
        batches = super()._batches(*args)
        self.texts.append([text for batch in batches for text in batch["text"]])
        return batches

    def _reference_gradients(self, *args: Any) -> tuple[torch.Tensor, list[torch.Tensor]]:
        loss, gradients = super()._reference_gradients(*args)
        self.gradients.append(gradients)
        return loss, gradients


def test_reference_batches_hold_each_reference_row_once_before_any_comes_again(
    tmp_path: Path, data: BackdoorDataModule, make: Callable[..., BadNets]
) -> None:
    defense = References(**SMALL)
    trainer_with(tmp_path, defense, max_steps=4).fit(make(), datamodule=data)
    rows = {row["text"] for row in data.clean_validation().reference}
    assert [len(texts) for texts in defense.texts] == [6] * 4  # 12 rows in equal batches of at most 8
    turns = [sorted(defense.texts[step] + defense.texts[step + 1]) for step in (0, 2)]
    assert turns[0] == turns[1]
    assert len(set(turns[0])) == SMALL["reference_size"]
    assert set(turns[0]) <= rows
    assert rows.isdisjoint(row["text"] for row in data.clean_validation().threshold)


def test_a_reference_batch_holds_rows_of_similar_length(
    tmp_path: Path, data: BackdoorDataModule, make: Callable[..., BadNets]
) -> None:
    defense, attack = References(**SMALL), make()
    trainer_with(tmp_path, defense, max_steps=2).fit(attack, datamodule=data)
    first, second = ([len(ids) for ids in attack.tokenizer(texts)["input_ids"]] for texts in defense.texts)
    assert max(first) <= min(second) or max(second) <= min(first)
    assert min(first) != max(second)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_every_gradient_lies_along_its_reference(
    tmp_path: Path, data: BackdoorDataModule, make: Callable[..., BadNets], precision: str
) -> None:
    after, defense = Gradients(), References(**SMALL, min_reference_loss=0.0)
    trainer = trainer_with(tmp_path, defense, after, max_steps=4, precision=precision)
    trainer.fit(make(), datamodule=data)
    compared = 0
    for gradients, references in zip(after.kept, defense.gradients, strict=True):
        for gradient, reference in zip(gradients, references, strict=True):
            if reference.norm() > 0 and gradient.norm() > 0:
                cosine = torch.cosine_similarity(gradient.flatten(), reference.flatten(), dim=0)
                assert cosine == pytest.approx(1, abs=1e-4)
                compared += 1
    assert compared > 12


def test_gradients_are_aligned_once_a_step_after_accumulation_and_before_clipping(
    tmp_path: Path, data: BackdoorDataModule, make: Callable[..., BadNets]
) -> None:
    before, after, defense = Gradients(), Gradients(), References(**SMALL, min_reference_loss=0.0)
    clipped: list[float] = []

    class Clipped(BadNets):
        def on_before_zero_grad(self, optimizer: Optimizer) -> None:
            grads = [p.grad for p in self.parameters() if p.grad is not None]
            clipped.extend([float(torch.stack([g.norm() for g in grads]).norm())] if grads else [])

    attack = Clipped(model=make().hparams["model"], learning_rate=1e-2)
    options = {"accumulate_grad_batches": 4, "gradient_clip_val": 1e-3, "max_epochs": 1}
    trainer = trainer_with(tmp_path, before, defense, after, **options)
    trainer.fit(attack, datamodule=data)
    assert len(before.kept) == len(defense.texts) == trainer.global_step == 2  # 64 rows in batches of 8
    for raw, aligned, references in zip(before.kept, after.kept, defense.gradients, strict=True):
        for g, a, r in zip(raw, aligned, references, strict=True):
            if r.norm() > 0:
                expected = (g * r).sum().abs() / r.square().sum() * r
                torch.testing.assert_close(a, expected, rtol=1e-4, atol=1e-8)
    assert max(torch.stack([g.norm() for g in after.kept[0]])) > 1e-3  # not clipped yet
    assert clipped
    assert clipped[-1] == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize("options", [{"max_raw_gradient_ratio": 0.0, "start_epoch": 0}, {"start_epoch": 9}])
def test_gradients_stay_raw_where_no_share_is_kept_and_the_reference_rows_count_as_learned(
    tmp_path: Path, data: BackdoorDataModule, make: Callable[..., BadNets], options: dict[str, Any]
) -> None:
    for least, aligned in ((math.inf, False), (0.0, True)):
        before, after = Gradients(), Gradients()
        defense = MuScleLoRA(**SMALL, **options, min_reference_loss=least, min_reference_gradient_norm=0.0)
        trainer_with(tmp_path, before, defense, after, max_steps=2).fit(make(), datamodule=data)
        pairs = [pair for kept in zip(before.kept, after.kept, strict=True) for pair in zip(*kept, strict=True)]
        assert any(not torch.equal(raw, changed) for raw, changed in pairs) == aligned


def test_dropout_of_reference_batches_does_not_change_the_random_numbers_of_training(
    tmp_path: Path, data: BackdoorDataModule, make: Callable[..., BadNets]
) -> None:
    """Training is the same without alignment and with one whose reference gradients are zero."""

    class Idle(MuScleLoRA):
        def _reference_gradients(self, *args: Any) -> tuple[torch.Tensor, list[torch.Tensor]]:
            loss, gradients = super()._reference_gradients(*args)
            return loss, [torch.zeros_like(gradient) for gradient in gradients]

    weights = []
    for defense in (Idle(**SMALL), MuScleLoRA(**SMALL, alignment=False)):
        attack = make()
        trainer_with(tmp_path, defense).fit(attack, datamodule=data)
        weights.append(attack.network.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_reference_gradient_depends_on_seed_and_step_alone(
    tmp_path: Path, data: BackdoorDataModule, make: Callable[..., BadNets]
) -> None:
    gradients = []
    for training_seed in (1, 2):  # the dropout of training differs
        defense = References(**SMALL, lora=False, multi_scale=False)
        attack = make(labels=["negative", "positive"])
        attack.configure_model()
        torch.manual_seed(training_seed)
        trainer_with(tmp_path, defense, max_steps=1).fit(attack, datamodule=data)
        gradients.append(defense.gradients[0])
    assert all(torch.equal(first, second) for first, second in zip(*gradients, strict=True))


#: A module with a MuScleLoRA that writes sums of its gradients and trained weights to one file per process.
WITNESS = """
import os

from lightning_backdoor.callbacks import MuScleLoRA


class Witness(MuScleLoRA):
    def write(self, word, tensors):
        with open(f"witness-{os.environ.get('LOCAL_RANK', '0')}.txt", "a") as file:
            file.write(f"{word} {[tensor.double().sum().item() for tensor in tensors]}\\n")

    def _reference_gradients(self, trainer, victim, parameters):
        self.write("raw", [parameter.grad for parameter in parameters])
        loss, gradients = super()._reference_gradients(trainer, victim, parameters)
        self.write("reference", gradients)
        return loss, gradients

    def on_train_end(self, trainer, pl_module):
        self.write("trained", [p for p in pl_module.network.parameters() if p.requires_grad])
"""


def test_two_processes_align_with_the_same_gradient(workspace: Path) -> None:
    (workspace / "witness.py").write_text(WITNESS, encoding="utf-8")
    options = ["--trainer.callbacks+=witness.Witness", "--trainer.callbacks.reference_size", "10"]
    options += ["--trainer.gradient_clip_val", "1"]
    for result in forked_pair("fit", "-c", "data.yaml", *options, cwd=workspace, folder=workspace / "aligned"):
        assert result.returncode == 0, result.stderr
    first, second = (path.read_text().splitlines() for path in sorted(workspace.glob("witness-*.txt")))
    assert first == second
    assert len([line for line in first if line.startswith("reference")]) > 5
    assert "MuScleLoRA" not in (workspace / "aligned" / "model" / "config.json").read_text()
    assert load_trained(str(workspace / "aligned" / "model"))


@pytest.mark.parametrize(
    ("options", "lora", "multi_scale"),
    [
        ({"multi_scale": False, "alignment": False}, True, False),
        ({"lora": False, "alignment": False}, False, True),
        ({"lora": False, "multi_scale": False}, False, False),
        ({"alignment": False}, True, True),
    ],
)
def test_each_part_can_be_switched_off_alone(
    tmp_path: Path,
    data: BackdoorDataModule,
    make: Callable[..., BadNets],
    options: dict[str, bool],
    lora: bool,
    multi_scale: bool,
) -> None:
    attack, defense = make(), References(**SMALL, **options)
    trainer_with(tmp_path, defense, max_steps=1).fit(attack, datamodule=data)
    names = set(attack.network.state_dict())
    assert any("lora_" in name for name in names) == lora
    assert any(name.endswith(".L") for name in names) == multi_scale
    assert bool(defense.texts) == options.get("alignment", True)
    trained = {name for name, parameter in attack.network.named_parameters() if parameter.requires_grad}
    assert ("classifier.weight" in trained) == (not lora)


def test_a_resumed_run_goes_on_with_the_reference_batches_of_an_uninterrupted_one(
    tmp_path: Path, data: BackdoorDataModule, make: Callable[..., BadNets]
) -> None:
    whole = References(**SMALL)
    saved = ModelCheckpoint(tmp_path, every_n_epochs=1, save_top_k=-1, filename="{epoch}")
    trainer_with(tmp_path, whole, saved).fit(make(), datamodule=data)
    resumed = References(**SMALL)
    trainer_with(tmp_path, resumed).fit(make(), datamodule=data, ckpt_path=tmp_path / "epoch=0.ckpt", weights_only=True)
    assert len(whole.texts) == 16
    assert resumed.texts == whole.texts[8:]
    for first, second in zip(resumed.gradients[0], whole.gradients[8], strict=True):
        assert torch.equal(first, second)


def test_too_few_reference_rows_are_an_error_before_training(
    tmp_path: Path, data: BackdoorDataModule, make: Callable[..., BadNets]
) -> None:
    with pytest.raises(InputError, match=r"^reference_size: 96 is more than the \d+ reference rows"):
        trainer_with(tmp_path, MuScleLoRA()).fit(make(), datamodule=data)


def test_a_run_without_a_number_of_epochs_is_an_error_before_training(
    tmp_path: Path, data: BackdoorDataModule, make: Callable[..., BadNets]
) -> None:
    with pytest.raises(InputError, match=r"^max_epochs: the share of the raw gradient grows"):
        trainer_with(tmp_path, MuScleLoRA(**SMALL), max_epochs=-1, max_steps=3).fit(make(), datamodule=data)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"lora_rank": 0}, "lora_rank: 0 is out of range; give at least 1"),
        ({"radial_scalings": []}, "radial_scalings: the list is empty; give at least one scaling"),
        ({"radial_scalings": [1, math.nan]}, "radial_scalings: nan is out of range; give a finite number"),
        ({"radial_scalings": [math.inf]}, "radial_scalings: inf is out of range; give a finite number"),
        ({"alpha": math.inf}, "alpha: inf is out of range; give a finite number"),
        ({"lora_alpha": 0}, "lora_alpha: 0 is out of range; give at least 1"),
        ({"lora_alpha": -4}, "lora_alpha: -4 is out of range; give at least 1"),
        ({"start_epoch": -4}, "start_epoch: -4 is out of range; give 0 or more"),
        ({"min_reference_loss": math.nan}, "min_reference_loss: nan is out of range; give a number"),
        ({"max_raw_gradient_ratio": 2.0}, "max_raw_gradient_ratio: 2.0 is not a share; give a number from 0 to 1"),
    ],
)
def test_values_out_of_range_are_one_line(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as error:
        MuScleLoRA(**options)
    assert str(error.value) == said
