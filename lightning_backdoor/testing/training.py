"""Checks defenses that act by training, a training-time defense or a repair, by fits and tests of a tiny model."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Sequence
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lightning_backdoor.attacks import BadNets
from lightning_backdoor.callbacks import Repair
from lightning_backdoor.data import BackdoorDataModule, Source
from lightning_backdoor.errors import Diverged
from lightning_backdoor.testing.material import labelled_texts, require, rows_file, seed_generators, tiny_bert
from lightning_backdoor.victim import TextClassifier

LABELS = ["negative", "positive"]


class _Logits(Callback):
    """Keeps the logits of a test."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def on_test_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *args: Any) -> None:
        self.seen.append(outputs["logits"].float())


class TinyRuns:
    """Fits and tests of a tiny model on poisoned rows, with callbacks under check.

    Args:
        folder: an empty folder.
        callback: the callback, which is copied for each run.
        max_epochs: number of epochs of a fit.
    """

    def __init__(self, folder: str, callback: Callback, max_epochs: int) -> None:
        self.folder, self.callback, self.max_epochs = folder, callback, max_epochs
        self.model = tiny_bert(f"{folder}/tiny")
        self.rows = rows_file(labelled_texts(160), folder)

    def fit(self, published: str | None, defended: bool = True) -> tuple[TextClassifier, Trainer]:
        """Trains a victim; a published one in the user's phase, on trusted rows."""
        victim = self._victim(self.model, published)
        trainer = self._trainer([copy.deepcopy(self.callback)] if defended else [], self.max_epochs if defended else 1)
        seed_generators()
        trainer.fit(victim, datamodule=self._data(published is not None))
        return victim, trainer

    def logits(self, model: str, checkpoint: str | None, defended: bool) -> Tensor:
        """The logits of a checkpoint or a model's folder on all test rows, clean and poisoned."""
        kept = _Logits()
        trainer = self._trainer([*([copy.deepcopy(self.callback)] if defended else []), kept], self.max_epochs)
        trainer.test(self._victim(model), datamodule=self._data(), ckpt_path=checkpoint, verbose=False)
        return torch.cat(kept.seen)

    def _victim(self, model: str, published: str | None = None) -> TextClassifier:
        return BadNets(
            triggers=["cf"],
            poison_rate=0.2,
            model=model,
            labels=LABELS,
            max_length=64,
            learning_rate=1e-3,
            published=published,
        )

    def _data(self, trusted: bool = False) -> BackdoorDataModule:
        source = Source(self.rows, labels=LABELS)
        train_on: Literal["train", "trusted"] = "trusted" if trusted else "train"
        return BackdoorDataModule(source, batch_size=16, cache_dir=self.folder, train_on=train_on)

    def _trainer(self, callbacks: Sequence[Callback], max_epochs: int) -> Trainer:
        return Trainer(
            accelerator="cpu",
            devices=1,
            max_epochs=max_epochs,
            num_sanity_val_steps=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=self.folder,
            callbacks=[*callbacks],
        )


def check_training(callback: Callback, folder: str, max_epochs: int) -> None:
    """Checks a training-time defense or a repair; see :func:`lightning_backdoor.testing.check_defense`.

    Raises:
        AssertionError: a rule is broken.
        InputError: the callback rejects the fit.
    """
    where, repairs = f"{type(callback).__name__}: fit", isinstance(callback, Repair)
    runs = TinyRuns(folder, callback, max_epochs)
    published = None
    if repairs:
        published = f"{folder}/published.ckpt"
        runs.fit(None, defended=False)[1].save_checkpoint(published)
    try:
        victim, trainer = runs.fit(published)
    except Diverged as error:
        raise AssertionError(f"{where}: {error}") from error
    require(all(bool(p.isfinite().all()) for p in victim.parameters()), where, "leaves weights that are not finite")
    _check_record(where, victim, repairs)
    checkpoint = f"{folder}/defended.ckpt"
    trainer.save_checkpoint(checkpoint)
    try:
        torch.load(checkpoint, weights_only=True)
    except pickle.UnpicklingError as error:
        problem = "its checkpoint does not load safely; keep plain values and tensors in state_dict and settings"
        raise AssertionError(f"{where}: {problem}") from error
    again = runs.fit(published)[0].state_dict()
    same = all(torch.equal(value, again[name]) for name, value in victim.state_dict().items())
    require(same, where, "trains other weights when run again with the same seed")
    # a repaired victim is plain, and restored without the repair
    expected = runs.logits(runs.model, checkpoint, defended=not repairs)
    require(bool(expected.isfinite().all()), where, "leaves a checkpoint whose logits are not finite")
    _check_export(where, victim, runs, expected)


def _check_record(where: str, victim: TextClassifier, repairs: bool) -> None:
    """Checks the record of a training-time defense; a repair has none, since it leaves a plain victim."""
    record = victim.training_defense
    if repairs:
        require(record is None, where, "sets training_defense, so that the victim does not load without the repair")
        return
    problem = "sets no training_defense on the victim; a callback for the user's phase is a subclass of Repair"
    assert record is not None, f"{where}: {problem}"
    try:
        plain = json.loads(json.dumps(record.settings)) == record.settings
    except TypeError:
        plain = False
    require(plain, where, f"settings are not plain values with text as keys: {record.settings!r:.200}")


def _check_export(where: str, victim: TextClassifier, runs: TinyRuns, expected: Tensor) -> None:
    """Checks that the exported model, which needs no callback, gives the logits of the checkpoint."""
    if victim.training_defense is not None and victim.training_defense.unmergeable:
        return
    victim.save_pretrained(f"{runs.folder}/exported")
    found = runs.logits(f"{runs.folder}/exported", None, defended=False)
    close = torch.allclose(found, expected, rtol=1e-3, atol=1e-3)
    require(close, where, "exports a model that gives other logits than the checkpoint under the defense")
