"""The set pass: all texts of an evaluation are read before the first is judged, such as by a defense that studies."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_backdoor.batch import Batch, taken, unlabelled
from lightning_backdoor.callbacks.processes import result_of_each
from lightning_backdoor.callbacks.shared import run_seed
from lightning_backdoor.data import BackdoorDataModule
from lightning_backdoor.data.cut_triggers import splits_read
from lightning_backdoor.data.rows import Rows
from lightning_backdoor.defenses.defense import Defense
from lightning_backdoor.errors import InputError
from lightning_backdoor.models.captures import sharing
from lightning_backdoor.models.precision import evaluation_precision
from lightning_backdoor.outputs.progress import tracked
from lightning_backdoor.victim import TextClassifier


def study_set(defense: Defense, trainer: Trainer, victim: TextClassifier, prevalence: float | None) -> None:
    """Shows a defense the clean and poisoned texts of the evaluation that begins, without labels or flags.

    Each process reads its own texts, and every process adopts the sums over all of them. Negatives, which carry a part
    of a trigger, are not in the set.

    Args:
        defense: a calibrated defense that studies.
        trainer: at the start of a validation or test.
        victim: the model under attack.
        prevalence: poisoned rows per clean row that the set holds (:func:`held_count`); None for all poisoned rows.

    Raises:
        InputError: the rows cannot be drawn by ``prevalence``, or the defense failed in another process.
    """

    def study() -> Tensor:
        with evaluation_precision(trainer), sharing(victim.captures):
            return defense.study(victim, set_batches(trainer, prevalence, f"showing all texts to {name}"))

    name = type(defense).__name__
    sums = result_of_each(trainer, name, study)
    with torch.inference_mode(False):  # buffers made in inference mode could not be written later
        defense.adopt(torch.stack(sums).sum(dim=0))


def set_batches(trainer: Trainer, prevalence: float | None, doing: str) -> Iterator[Batch]:
    """This process's texts of the set: clean and poisoned ones, on its device, without labels and flags.

    Args:
        trainer: at the start of a validation or test.
        prevalence: poisoned rows per clean row; None for all poisoned rows.
        doing: what is done with the texts, for the progress bar.

    Raises:
        InputError: the rows cannot be drawn by ``prevalence``.
    """
    held = None if prevalence is None else _held(_loaders(trainer), prevalence)
    return tracked(_batches(trainer, held), doing, "batches")


def _batches(trainer: Trainer, held: set[tuple[int, int]] | None) -> Iterator[Batch]:
    counts = trainer.num_test_batches if trainer.testing else trainer.num_val_batches
    for loader, count in zip(_loaders(trainer), counts, strict=True):
        for batch in islice(loader, None if count == float("inf") else int(count)):
            # flags are hidden after the transfer: some attacks write their trigger there, into rows that are flagged
            moved: Batch = trainer.strategy.batch_to_device(batch)
            kept = ~moved["negative"]
            if held is not None:
                in_set = [row in held for row in zip(moved["index"].tolist(), moved["label"].tolist(), strict=True)]
                kept &= ~moved["poisoned"] | torch.tensor(in_set, device=kept.device)
            if kept.any():
                yield unlabelled(moved if kept.all() else taken(moved, kept))


def _loaders(trainer: Trainer) -> list[DataLoader[Batch]]:
    loaders: Any = trainer.test_dataloaders if trainer.testing else trainer.val_dataloaders
    return loaders if isinstance(loaders, list) else [loaders]


def _held(loaders: list[DataLoader[Batch]], prevalence: float) -> set[tuple[int, int]]:
    """Indices and target labels of the poisoned rows of the set, drawn by the run's seed."""
    given = [getattr(loader.dataset, "rows", None) for loader in loaders]
    rows = [of_loader for of_loader in given if isinstance(of_loader, Rows)]
    if len(rows) < len(given):
        raise InputError("prevalence", f"{prevalence} needs the rows of a BackdoorDataModule", "leave it out")
    clean = sum(int((~(of.poisoned | of.negative)).sum()) for of in rows)
    columns = [(of.index[of.poisoned].tolist(), of.label[of.poisoned].tolist()) for of in rows]
    poisoned = [row for of_rows in columns for row in zip(*of_rows, strict=True)]
    count = held_count(prevalence, clean, len(poisoned))
    return set(random.Random(f"{run_seed()}/prevalence").sample(sorted(poisoned), count))


def held_count(prevalence: float, clean: int, poisoned: int) -> int:
    """The number of poisoned rows of a set with a given prevalence; 0 where there are none, as with a benign victim.

    Args:
        prevalence: poisoned rows per clean row.
        clean: number of clean rows.
        poisoned: number of poisoned rows to draw from.

    Raises:
        InputError: there are poisoned rows, but too few.

    >>> held_count(0.05, clean=100, poisoned=60), held_count(0.05, clean=100, poisoned=0)
    (5, 0)
    """
    count = round(prevalence * clean)
    if 0 < poisoned < count:
        problem = f"{prevalence} of {clean} clean rows is {count}, but only {poisoned} poisoned rows are there"
        raise InputError("prevalence", problem, f"give at most {math.floor(1e4 * poisoned / clean) / 1e4}")
    return count if poisoned else 0


def check_prevalence(prevalence: float, data: BackdoorDataModule, stage: TrainerFn | None) -> None:
    """Checks, before a victim is trained, that the sets that a stage of the trainer reads can be drawn.

    Raises:
        InputError: there are poisoned rows, but too few.
    """
    splits = data.poisoned_splits()
    for name in splits_read(stage):
        if name in splits.poisoned:
            held_count(prevalence, len(splits.clean[name]), len(splits.poisoned[name]))
