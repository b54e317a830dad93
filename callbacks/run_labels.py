"""Names by which runs are grouped and compared."""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_backdoor.attacks import BackdoorAttack
from lightning_backdoor.callbacks.inference_defense import attached


class RunLabels(Callback):
    """Tells every logger the run's ``dataset``, ``model``, ``attack``, ``defense``, ``training_defense`` and ``seed``.

    ``defense`` names all defenses, those of the training rows and of training first; attach this after them.

    Example::

        trainer = Trainer(logger=WandbLogger(), callbacks=[RunLabels()])
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Logs the names as hyperparameters, which W&B keeps in the run's config."""
        defenses = [type(callback.defense).__name__ for callback in attached(trainer)]
        trained_under: str | None = getattr(pl_module, "training_defense", None)
        if trained_under:
            defenses.insert(0, trained_under.partition("(")[0])
        datamodule = getattr(trainer, "datamodule", None)
        data_defense = getattr(datamodule, "data_defense", None)
        if data_defense is not None:
            defenses.insert(0, f"{type(data_defense).__name__} on training rows")
        source = getattr(datamodule, "source", None)
        labels = {
            "dataset": "unknown" if source is None else "/".join(filter(None, (source.path, source.name))),
            "model": pl_module.hparams.get("model", "unknown"),
            "attack": type(pl_module).__name__ if isinstance(pl_module, BackdoorAttack) else "none",
            "defense": "+".join(defenses) or "none",
            "training_defense": trained_under or "none",
            "seed": getattr(datamodule, "seed", "unknown"),
        }
        for logger in trainer.loggers:
            logger.log_hyperparams(labels)
