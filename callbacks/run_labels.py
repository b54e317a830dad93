"""A callback that logs the names by which runs are grouped and compared."""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_backdoor.attacks import BackdoorAttack
from lightning_backdoor.callbacks.inference_defense import attached
from lightning_backdoor.callbacks.inspection_callback import attached_inspections
from lightning_backdoor.victim.training_defense import TrainingDefense


class RunLabels(Callback):
    """Logs the run's dataset, model, attack, defenses and seed as hyperparameters to every logger.

    The labels are ``dataset``, ``model``, ``attack``, ``defense``, ``training_defense`` and ``seed``.
    ``defense`` names all defenses in the order in which they act, joined by ``+``: the data defense, the training-time
    defense, the fine-tuning of a published victim, inspections and inference-time defenses. The checkpoint of a
    published victim is among the victim's own hyperparameters. Attach this callback after the others.

    Example::

        trainer = Trainer(logger=WandbLogger(), callbacks=[RunLabels()])
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Logs the labels; W&B stores them in the run's config."""
        data = getattr(trainer, "datamodule", None)
        data_defense = getattr(data, "data_defense", None)
        training_defense: TrainingDefense | None = getattr(pl_module, "training_defense", None)
        defenses: list[str] = []
        if data_defense is not None:
            defenses.append(f"{type(data_defense).__name__} on training rows")
        if training_defense is not None:
            defenses.append(training_defense.name)
        if pl_module.hparams.get("published") is not None:
            rows = "trusted rows" if getattr(data, "train_on", "train") == "trusted" else "training rows"
            defenses.append(f"fine-tuning on {rows}")
        defenses += [type(callback.inspection).__name__ for callback in attached_inspections(trainer)]
        defenses += [type(callback.defense).__name__ for callback in attached(trainer)]
        source = getattr(data, "source", None)
        labels = {
            "dataset": "unknown" if source is None else "/".join(filter(None, (source.path, source.name))),
            "model": pl_module.hparams.get("model", "unknown"),
            "attack": type(pl_module).__name__ if isinstance(pl_module, BackdoorAttack) else "none",
            "defense": "+".join(defenses) or "none",
            "training_defense": str(training_defense or "none"),
            "seed": getattr(data, "seed", "unknown"),
        }
        for logger in trainer.loggers:
            logger.log_hyperparams(labels)
