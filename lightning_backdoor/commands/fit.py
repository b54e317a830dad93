"""``fit``, ``validate``, ``test`` and ``predict``: LightningCLI with a run folder and checks before anything starts."""

from __future__ import annotations

import json
import math
import shlex
import sys
import warnings
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback

from lightning_backdoor.attacks import BackdoorAttack
from lightning_backdoor.callbacks import InferenceDefense, OutcomeWriter, PredictionWriter, RunLabels
from lightning_backdoor.callbacks.inference_defense import check_names
from lightning_backdoor.commands.poison import without_run_options
from lightning_backdoor.commands.run_folder import output_folder
from lightning_backdoor.data import BackdoorDataModule
from lightning_backdoor.data.pairs import PairsDataModule
from lightning_backdoor.errors import InputError
from lightning_backdoor.language.paraphrase.by_model import NotCached
from lightning_backdoor.language.paraphrase.tuner import ParaphraseTuner
from lightning_backdoor.outputs.terminal_table import print_results
from lightning_backdoor.victim import TextClassifier
from lightning_backdoor.victim.checkpoints import load_weights, read_checkpoint

#: what is trained, and on what.
TRAINED_ON: dict[type[LightningModule], type[LightningDataModule]] = {
    TextClassifier: BackdoorDataModule,
    ParaphraseTuner: PairsDataModule,
}


class _RunConfig(SaveConfigCallback):
    """The command's config beside what it writes."""

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        path = Path(trainer.default_root_dir, self.config_filename)
        config = self.config.clone()
        if stage == "fit":
            config.ckpt_path = None  # or a test with this config would test what training went on from
        self.parser.save(config, path, skip_none=False, overwrite=True)


class BackdoorCLI(LightningCLI):
    """LightningCLI for victims and their data."""

    def __init__(self, command: str) -> None:
        self.command = command
        self.best: ModelCheckpoint | None = None
        super().__init__(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=_RunConfig,
            save_config_kwargs={"save_to_log_dir": False},
            trainer_defaults={"max_epochs": 3},
            auto_configure_optimizers=False,
            parser_kwargs={"prog": "lightning-backdoor"},
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """The command given alone: a parser of the others would only cost time."""
        return {name: skip for name, skip in LightningCLI.subcommands().items() if name in sys.argv[1:2]}

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """One seed for everything."""
        parser.add_argument("--seed_everything", type=int, default=0, help="Seed of every random choice.")

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The run's folder, and the seed for the data."""
        parser.add_argument(
            "--run_dir", type=str | None, default=None, help="The run's folder (default: a new one in runs/)."
        )
        parser.link_arguments("seed_everything", "data.init_args.seed")

    def _add_subcommands(self, parser: LightningArgumentParser, **kwargs: Any) -> None:
        super()._add_subcommands(parser, **kwargs)
        defaults = {"weights_only": True}  # from the web, Lightning would load a checkpoint by pickle
        if self.command in ("test", "validate"):
            defaults["verbose"] = False  # print_results says it better
        if self.command == "predict":
            defaults["return_predictions"] = False  # they are written, not returned
        self._subcommand_parsers[self.command].set_defaults(defaults)

    def _parse_ckpt_path(self) -> None:
        """The config alone says what the model is; a checkpoint only brings weights and names no class to import."""

    def before_instantiate_classes(self) -> None:
        """Settles the run's folder and sends the loggers there."""
        config = self.config[self.command]
        if config.trainer.default_root_dir is not None:
            raise InputError("default_root_dir", f"{config.trainer.default_root_dir} is not used", "give --run_dir")
        name = config.model.class_path.rpartition(".")[2]
        self.folder = output_folder(self.command, config.run_dir, name, resume=bool(config.get("ckpt_path")))
        loggers = config.trainer.logger
        if loggers is None or loggers is True:
            # Lightning numbers its versions, so that a resumed run loses none of its log
            folder = {"save_dir": str(self.folder), "name": "logs"}
            loggers = Namespace(class_path="lightning.pytorch.loggers.CSVLogger", init_args=Namespace(**folder))  # type: ignore[no-untyped-call]
            config.trainer.logger = loggers
        elsewhere = (None, ".", config.run_dir)  # the last is where the run that this config is of logged
        for logger in loggers if isinstance(loggers, list) else [loggers]:
            if isinstance(logger, Namespace) and logger.init_args.get("save_dir") in elsewhere:
                logger.init_args.save_dir = str(self.folder)
        if self.command == "fit":
            config.run_dir = str(self.folder)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Adds the callbacks that every command has."""
        config = self._get(self.config_init, "trainer")
        callbacks: list[Callback] = [RunLabels()]
        if config.enable_checkpointing is not False:
            validated = config.limit_val_batches != 0
            name, mode = getattr(self.model, "selected_by", (None, "max"))  # other modules are refused below
            checkpoints = Path(self.config[self.command].run_dir or self.folder, "checkpoints")
            self.best = ModelCheckpoint(
                checkpoints,
                filename="best",
                monitor=name if validated else None,
                mode=mode,  # the first best: a later epoch must be better, not as good
                enable_version_counter=False,
            )
            callbacks.append(self.best)
            # save_last would write it with a new best alone; after the best, whose state it keeps, and of another mode,
            # since without validation nothing else tells their states apart
            other = "min" if mode == "max" else "max"
            callbacks.append(ModelCheckpoint(checkpoints, filename="last", mode=other, enable_version_counter=False))
        if self.command == "predict":
            callbacks.append(PredictionWriter())
        given = config.callbacks if isinstance(config.callbacks, list) else [config.callbacks]
        check_names(given)
        defended = any(isinstance(callback, InferenceDefense) for callback in given)
        if self.command == "test" and isinstance(self.model, TextClassifier) and not defended:
            callbacks.append(OutcomeWriter())
        self.trainer_defaults["callbacks"] = callbacks
        return super().instantiate_trainer(default_root_dir=self.folder, **kwargs)

    def _check(self) -> None:
        """All that can be wrong with the input, found before processes or training start."""
        needed = next((data for kind, data in TRAINED_ON.items() if isinstance(self.model, kind)), None)
        if needed is None or not isinstance(self.datamodule, needed):
            pairs = " or ".join(f"a {kind.__name__} and a {data.__name__}" for kind, data in TRAINED_ON.items())
            names = f"{type(self.model).__name__} and {type(self.datamodule).__name__}"
            raise InputError("model and data", f"{names} do not belong together", f"give {pairs}")
        data = self.datamodule
        if isinstance(self.model, BackdoorAttack) and isinstance(data, BackdoorDataModule):
            self.model.may_generate = False  # a process group would wait for it, and not for long enough
            data.attack = self.model
        try:
            data.prepare_data()
        except NotCached as error:
            command = shlex.join(["lightning-backdoor", "poison", *without_run_options(sys.argv[2:])])
            raise InputError(
                "paraphraser", f"{error.missing} paraphrases are not in the cache", f"run: {command} --output FOLDER"
            ) from None
        if self.command == "fit" and isinstance(data, BackdoorDataModule):
            data.training_rows()
        self.model.load_config()
        self.model.tokenizer  # noqa: B018 - loading it is the check
        config = self.config[self.command]
        checkpoint = config.get("ckpt_path")
        if self.command != "fit" and not checkpoint and config.run_dir:
            best = Path(config.run_dir, "checkpoints", "best.ckpt")
            raise InputError("ckpt_path", "not given, and without it no victim of the run is used", f"give {best}")
        keywords = ("best", "last", "hpc", "registry")
        # Lightning itself fetches addresses and finds keywords, with weights_only as well
        if checkpoint and checkpoint not in keywords and "://" not in checkpoint:
            read_checkpoint(checkpoint)

    def _begin(self) -> None:
        self._check()
        self.folder.mkdir(parents=True, exist_ok=True)  # only now: bad input leaves no empty folder behind

    before_fit = before_validate = before_test = before_predict = _begin

    def after_fit(self) -> None:
        """Exports the selected victim as a Hugging Face folder beside its checkpoint."""
        if self.trainer.is_global_zero and self.best is not None and self.best.best_model_path:
            load_weights(self.model, self.best.best_model_path)
            self.model.save_pretrained(self.folder / "model")
            sys.stdout.write(f"checkpoint: {self.best.best_model_path}\nmodel: {self.folder / 'model'}\n")

    def after_test(self) -> None:
        """Writes and prints the numbers."""
        if self.trainer.is_global_zero:
            metrics = {name: float(value) for name, value in self.trainer.callback_metrics.items()}
            known = {name: None if math.isnan(value) else value for name, value in metrics.items()}  # JSON has no NaN
            (self.folder / "metrics.json").write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
            print_results({type(self.model).__name__: metrics})
            sys.stdout.write(f"written to: {self.folder}\n")

    after_validate = after_test


class _CheckCLI(BackdoorCLI):
    """Reads and checks what a command is given, and stops there."""

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """None is made: the devices that it asks for may be on another machine."""
        callbacks = self._get(self.config_init, "trainer").callbacks
        check_names(callbacks if isinstance(callbacks, list) else [callbacks])
        return None  # type: ignore[return-value]

    def _run_subcommand(self, subcommand: str) -> None:
        self._check()


def run(command: str, args: list[str], check: bool = False) -> None:
    """Runs a command of LightningCLI, which reads ``sys.argv`` so that processes it starts repeat it.

    Args:
        command: ``fit``, ``validate``, ``test`` or ``predict``.
        args: its options.
        check: only find out whether it could begin.

    Raises:
        InputError: bad input.
    """
    sys.argv[1:] = [command, *args]
    # notes to developers of training loops, not to users of ours
    for message in (".*does not have many workers.*", ".*LeafSpec.*", ".*overridden `on_after_batch_transfer`.*"):
        warnings.filterwarnings("ignore", message=message)
    (_CheckCLI if check else BackdoorCLI)(command)
