"""A callback that logs the names by which runs are grouped and compared, and what they ran with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_backdoor.attacks import BackdoorAttack
from lightning_backdoor.callbacks.inference_defense import InferenceDefense
from lightning_backdoor.callbacks.inspection_callback import InspectionCallback
from lightning_backdoor.callbacks.repair import Repair
from lightning_backdoor.data import BackdoorDataModule
from lightning_backdoor.outputs.versions import versions
from lightning_backdoor.victim.training_defense import TrainingDefense


class RunLabels(Callback):
    """Logs what a run is and what it ran with as hyperparameters to every logger.

    The labels are ``dataset``, ``model``, ``attack``, ``defense``, ``training_defense`` and ``seed``.
    ``defense`` names all defenses in the order in which they act, joined by ``+``: the data defense, the training-time
    defense, the fine-tuning of a published victim, inspections and inference-time defenses. The checkpoint of a
    published victim is among the victim's own hyperparameters. Also logged are ``batch_size``, ``max_epochs``,
    ``precision``, ``rows`` (numbers of rows by split) and ``versions``. Attach this callback after the others.

    Example::

        trainer = Trainer(logger=WandbLogger(), callbacks=[RunLabels()])
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Logs the labels; W&B stores them in the run's config."""
        data = getattr(trainer, "datamodule", None)
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        labels = {
            **run_labels(pl_module, data, callbacks),
            "training_defense": str(getattr(pl_module, "training_defense", None) or "none"),
            "batch_size": getattr(data, "batch_size", "unknown"),
            "max_epochs": trainer.max_epochs,
            "precision": str(trainer.precision),
            "rows": row_counts(data) if isinstance(data, BackdoorDataModule) else {},
            "versions": versions(),
        }
        for logger in trainer.loggers:
            logger.log_hyperparams(labels)


def run_labels(model: LightningModule, data: object, callbacks: Sequence[Callback]) -> dict[str, Any]:
    """The labels ``dataset``, ``model``, ``attack``, ``defense`` and ``seed`` of a run.

    Args:
        model: the victim.
        data: its data module.
        callbacks: the trainer's callbacks.
    """
    source, files = getattr(data, "source", None), getattr(data, "files_folder", None)
    at_test = [
        *(type(callback.inspection).__name__ for callback in callbacks if isinstance(callback, InspectionCallback)),
        *(type(callback.defense).__name__ for callback in callbacks if isinstance(callback, InferenceDefense)),
    ]
    return {
        "dataset": files or ("unknown" if source is None else "/".join(filter(None, (source.path, source.name)))),
        "model": model.hparams.get("model", "unknown"),
        "attack": type(model).__name__ if isinstance(model, BackdoorAttack) else "none",
        "defense": "+".join([*training_names(model, data, callbacks), *at_test]) or "none",
        "seed": getattr(data, "seed", "unknown"),
    }


def training_names(model: LightningModule, data: object, callbacks: Sequence[Callback]) -> list[str]:
    """The names of the defenses that act before the test: on training rows, in training, and by fine-tuning."""
    names = []
    data_defense = getattr(data, "data_defense", None)
    if data_defense is not None:
        names.append(f"{type(data_defense).__name__} on training rows")
    record: TrainingDefense | None = getattr(model, "training_defense", None)
    if record is not None:
        names.append(record.name)
    else:  # before the callback's setup, the victim has no record; the callback can make it
        names += [type(callback).__name__ for callback in callbacks if callable(getattr(callback, "record", None))]
    if model.hparams.get("published") is not None:
        rows = "trusted rows" if getattr(data, "train_on", "train") == "trusted" else "training rows"
        repairs = [type(callback).__name__ for callback in callbacks if isinstance(callback, Repair)]
        names.append(f"{'+'.join(repairs) or 'fine-tuning'} on {rows}")
    return names


def row_counts(data: BackdoorDataModule) -> dict[str, int]:
    """Numbers of rows by split, after poisoning; and of poisoned rows, where there are some."""
    splits = data.poisoned_splits()
    counts = {"train": len(splits.train), "train poisoned": int(splits.train.poisoned.sum())}
    for name in ("validation", "test"):
        counts |= {name: len(splits.clean[name]), f"{name} poisoned": len(splits.poisoned[name])}
    return {name: count for name, count in counts.items() if count or "poisoned" not in name}
