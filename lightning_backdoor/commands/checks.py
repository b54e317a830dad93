"""Checks of a command's input that are made before processes or training start."""

from __future__ import annotations

import shlex

from lightning.pytorch import LightningDataModule, LightningModule

from lightning_backdoor.attacks import BackdoorAttack
from lightning_backdoor.callbacks.evasion import Evasion
from lightning_backdoor.callbacks.inference_defense import InferenceDefense
from lightning_backdoor.callbacks.inspection_callback import InspectionCallback
from lightning_backdoor.commands.run_checkpoints import OF_TRAINING
from lightning_backdoor.commands.run_cli import RunCLI
from lightning_backdoor.data import BackdoorDataModule
from lightning_backdoor.data.pairs import PairsDataModule
from lightning_backdoor.errors import InputError
from lightning_backdoor.language.paraphrase.by_model import NotCached
from lightning_backdoor.language.paraphrase.tuner import ParaphraseTuner
from lightning_backdoor.victim import TextClassifier
from lightning_backdoor.victim.checkpoints import read_checkpoint

#: classes of trainable models, each with the class of data module that it is trained on.
TRAINED_ON: dict[type[LightningModule], type[LightningDataModule]] = {
    TextClassifier: BackdoorDataModule,
    ParaphraseTuner: PairsDataModule,
}


def check_input(cli: RunCLI, args: list[str]) -> None:
    """Checks that a command can start; reads and poisons the data, and loads configuration and tokenizer.

    Args:
        cli: the parsed command.
        args: the command's options, from which an error message may build another command to run.

    Raises:
        InputError: the command cannot start.
    """
    _check_pair(cli.model, cli.datamodule)
    _check_data(cli, args)
    cli.model.load_config()
    cli.model.tokenizer  # noqa: B018 - loading it is the check
    if cli.checkpoint is not None:
        content = read_checkpoint(cli.checkpoint, by_lightning=True)
        if cli.command == "fit" and not content.keys() >= set(OF_TRAINING):
            problem = f"{cli.checkpoint} has no state of the optimizer, with which training could go on"
            raise InputError("ckpt_path", problem, "give the run's last.ckpt; --model.published starts from weights")


def check_published(cli: RunCLI) -> None:
    """Checks that the model can be tested as it is, without training, after :func:`check_input`.

    Raises:
        InputError: see :meth:`lightning_backdoor.victim.TextClassifier.check_published`.
    """
    model = cli.model
    assert isinstance(model, TextClassifier)
    model.hparams["labels"] = model.hparams["labels"] or cli.datamodule.label_names
    model.check_published()
    if type(model).configure_model is not BackdoorAttack.configure_model:  # which may make weights of its own
        model.configure_model()
        model.check_published()


def _check_pair(model: LightningModule, data: LightningDataModule) -> None:
    needed = next(
        (data_class for model_class, data_class in TRAINED_ON.items() if isinstance(model, model_class)), None
    )
    if needed is None or not isinstance(data, needed):
        pairs = " or ".join(f"a {model.__name__} and a {data.__name__}" for model, data in TRAINED_ON.items())
        names = f"{type(model).__name__} and {type(data).__name__}"
        raise InputError("model and data", f"{names} do not belong together", f"give {pairs}")


def _check_data(cli: RunCLI, args: list[str]) -> None:
    data = cli.datamodule
    if isinstance(data, BackdoorDataModule):
        data.module = cli.model  # there is no trainer yet to take the module from
        if isinstance(cli.model, BackdoorAttack):
            cli.model.may_generate = False  # other processes of the run would time out while waiting
            data.attack = cli.model
    try:
        data.prepare_data()
    except NotCached as error:
        command = shlex.join(["lightning-backdoor", "poison", *args])
        raise InputError(
            error.field, f"{error.missing} {error.what} are not in the cache", f"run: {command} --output FOLDER"
        ) from None
    if cli.command == "fit" and isinstance(data, BackdoorDataModule):
        data.check_cleaning()
        for callback in cli.given_callbacks:
            if isinstance(callback, InferenceDefense | InspectionCallback):
                callback.check_reference(data)
            if isinstance(callback, Evasion):
                given = cli.config_init.trainer  # not cli.trainer: grids check cells without making a trainer
                callback.first_epoch(cli.model, given.max_epochs, given.fast_dev_run)  # before a stage on plain texts
        if isinstance(cli.model, TextClassifier) and cli.checkpoint is None:
            cli.model.read_published(data.label_names, data)
