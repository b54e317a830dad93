"""Creating trainer, model and data from the options of a command, and choosing its output folder."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import WandbLogger

from lightning_backdoor.callbacks.inference_defense import check_names
from lightning_backdoor.commands.checkpoint_path import check_left, left_by_error, resolve_checkpoint
from lightning_backdoor.commands.launch import check_cores
from lightning_backdoor.commands.parsing.known_options import OBJECTS
from lightning_backdoor.commands.parsing.refused_options import (
    check_strategy,
    refused_classes_named,
    refused_options_named,
)
from lightning_backdoor.commands.parsing.run_parser import RunParser, parse, run_parser
from lightning_backdoor.commands.precision import RunPrecision, evaluated_precision, fit_precision
from lightning_backdoor.commands.run_callbacks import command_callbacks
from lightning_backdoor.commands.run_checkpoints import BestCheckpoint, checkpoint_callbacks
from lightning_backdoor.commands.run_folder import output_folder
from lightning_backdoor.commands.slurm_step import check_step, prepare_step
from lightning_backdoor.commands.wandb_names import (
    check_wandb_names,
    names_of_run,
    run_config,
    tell_wandb,
    with_csv_log,
)
from lightning_backdoor.errors import InputError
from lightning_backdoor.files.names import check_inside, expanded


class RunConfig(SaveConfigCallback):
    """A callback that writes the options of a command as ``config.yaml`` into its output folder."""

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        path = Path(trainer.default_root_dir, self.config_filename)
        config = self.config.clone()
        if stage == "fit":
            config.ckpt_path = None  # a test with this config must not test the checkpoint that training resumed from
        self.parser.save(config, path, skip_none=False, overwrite=True)


class RunCLI(LightningCLI):
    """Parses the options of a command and creates ``trainer``, ``model`` and ``datamodule`` from them.

    Nothing is run, no process is started and no file is written: the caller calls the trainer's method of the command
    with :attr:`method_arguments`.

    Args:
        command: ``fit``, ``validate``, ``test`` or ``predict``.
        args: the command's options, as on the command line.
        with_trainer: False creates no trainer (it is None), for a check on a machine without the trainer's devices.

    Attributes:
        folder: the folder that the command writes to; it is not created yet.
        checkpoint: the file of the checkpoint that the command starts from; None without one.
        best: the callback that keeps the best checkpoint; None if checkpoints are disabled.
        precision: the precision of the trainer.

    Raises:
        InputError: an option cannot be used.
        Complete: ``fit`` is to go on with a run that is complete.
        SystemExit: ``--help`` or ``--print_config`` is among the options.
    """

    def __init__(self, command: str, args: list[str], with_trainer: bool = True) -> None:
        self.command = command
        self.with_trainer = with_trainer
        self.folder = Path()
        self.checkpoint: Path | None = None
        self.best: BestCheckpoint | None = None
        self.precision = RunPrecision(None)
        super().__init__(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=RunConfig,
            save_config_kwargs={"save_to_log_dir": False},
            auto_configure_optimizers=False,
            args=args,
            run=False,
        )

    @property
    def callbacks(self) -> list[Callback]:
        """The trainer's callbacks."""
        callbacks: list[Callback] = self.trainer.callbacks  # type: ignore[attr-defined]
        return callbacks

    @property
    def given_callbacks(self) -> list[Any]:
        """The callbacks of the trainer's options; there are some without a trainer, too."""
        given = self.config_init.trainer.callbacks
        return given if isinstance(given, list) else [given]

    @property
    def method_arguments(self) -> dict[str, Any]:
        """The arguments of the trainer's method except model and data: ``ckpt_path``, ``weights_only``, ...

        Whatever the options say, checkpoints are loaded without running code, and only from local files.
        """
        names = inspect.signature(getattr(Trainer, self.command)).parameters
        arguments = {name: self.config_init[name] for name in names if name not in ("self", *OBJECTS)}
        return arguments | {
            "ckpt_path": None if self.checkpoint is None else str(self.checkpoint),
            "weights_only": True,
        }

    def setup_parser(
        self, add_subcommands: bool, main_kwargs: dict[str, Any], subparser_kwargs: dict[str, Any]
    ) -> None:
        """Sets the parser, which ``poison`` uses too."""
        self.parser = run_parser(self.command)

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parses as Lightning does, but without its warning about options in ``sys.argv``, and with one-line errors."""
        assert isinstance(args, list)
        assert isinstance(parser, RunParser)
        self.config = parse(parser, args)

    def before_instantiate_classes(self) -> None:
        """Chooses the output folder, and makes the loggers write into it."""
        config = self.config
        if config.trainer.default_root_dir is not None:
            raise InputError("default_root_dir", f"{config.trainer.default_root_dir} is not used", "give --run_dir")
        for name in ("accumulate_grad_batches", "check_val_every_n_epoch", "val_check_interval"):
            value = config.trainer[name]
            if value == 0 or (isinstance(value, int) and value < 0):  # Lightning divides by it
                raise InputError(f"trainer.{name}", f"{value} is not a number of times", "at least 1")
        if config.trainer.overfit_batches:
            problem = f"{config.trainer.overfit_batches} is not used, since batches are formed by length"
            raise InputError("trainer.overfit_batches", problem, "give --trainer.limit_train_batches")
        check_strategy(config.trainer.strategy)
        if config.weights_only is False:
            raise InputError("weights_only", "False lets a checkpoint run code", "leave it out")
        victim = config.model.class_path.rpartition(".")[2]
        unsettled = (None, ".", config.run_dir)  # a saved config contains the folder of its run
        config.run_dir = config.run_dir and expanded(config.run_dir)
        self.folder = output_folder(self.command, config.run_dir, victim, resume=bool(config.ckpt_path))
        if self.command == "fit" and config.ckpt_path == "last":
            check_left(self.folder, config.trainer)
        self.checkpoint = resolve_checkpoint(config.ckpt_path, self.command, self.folder, config.run_dir)
        loggers = config.trainer.logger
        if loggers is None or loggers is True:
            # Lightning numbers the versions, so that a resumed run keeps its earlier log
            arguments = Namespace(save_dir=str(self.folder), name="logs")  # type: ignore[no-untyped-call]
            loggers = Namespace(class_path="lightning.pytorch.loggers.CSVLogger", init_args=arguments)  # type: ignore[no-untyped-call]
            config.trainer.logger = loggers
        config.trainer.logger = loggers = with_csv_log(loggers)
        for logger in loggers if isinstance(loggers, list) else [loggers]:
            if not isinstance(logger, Namespace):
                continue
            if str(logger.class_path).endswith("WandbLogger"):
                check_wandb_names(logger)
            for name in ("name", "version", "sub_dir"):  # folders in the logger's
                check_inside(str(logger.init_args.get(name) or ""), f"trainer.logger.{name}")
            if logger.init_args.get("save_dir") in unsettled:
                logger.init_args.save_dir = str(self.folder)
        if self.command == "fit":
            config.run_dir = str(self.folder)

    def instantiate_classes(self) -> None:
        """Creates model, data and trainer.

        Raises:
            InputError: raised by a constructor, or a library cannot create a class.
        """
        with refused_classes_named(self.config):
            super().instantiate_classes()

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Creates the trainer, with the callbacks of its options and of the command.

        Raises:
            InputError: Lightning refuses the options, such as a device that there is not.
        """
        options, given = self.config_init.trainer, self.given_callbacks
        check_names(given)
        if not self.with_trainer:
            return None  # type: ignore[return-value]
        if self.command == "fit":
            self.checkpoint = self.checkpoint or left_by_error(given)
            self.precision = fit_precision(options, self.checkpoint)
            self.config.trainer.precision = self.precision.value  # a rerun elsewhere asks for the same
        else:
            self.precision = RunPrecision(evaluated_precision(options.precision))
        options.precision = self.precision.value
        loggers = options.logger if isinstance(options.logger, list) else [options.logger]
        if any(isinstance(logger, WandbLogger) for logger in loggers):
            names = names_of_run(self.command, self.model, self.datamodule, given)
            tell_wandb(loggers, names, run_config(self.command, self.parser.dump(self.config, format="json")))
        callbacks = command_callbacks(self.command, self.model, given, self.folder)
        if options.enable_checkpointing is not False:
            folder = Path(self.config.run_dir or self.folder, "checkpoints")
            checkpoints = checkpoint_callbacks(
                self.model, self.datamodule, folder, validated=options.limit_val_batches != 0, callbacks=given
            )
            self.best = checkpoints[0]
            callbacks += checkpoints
        self.trainer_defaults["callbacks"] = callbacks
        alone = not options.plugins  # they may say how processes are started
        if alone:
            prepare_step()
        with refused_options_named(options):
            trainer = super().instantiate_trainer(default_root_dir=self.folder, **kwargs)
        check_cores("trainer.devices", trainer.strategy.root_device, trainer.num_devices)
        if alone:
            check_step(trainer)
        return trainer
