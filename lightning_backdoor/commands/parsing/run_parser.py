"""The options of ``fit``, ``validate``, ``test``, ``predict`` and ``poison``: their parser, presets and errors."""

from __future__ import annotations

import inspect
import pydoc
from collections.abc import Mapping
from contextvars import ContextVar
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal, Union

import lightning
import yaml
from jsonargparse import ActionConfigFile, ArgumentError, Namespace, get_loader, set_loader  # type: ignore[attr-defined]
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.loggers import Logger

from lightning_backdoor.commands.parsing.early_checks import settled
from lightning_backdoor.commands.parsing.help_pages import DESCRIPTIONS
from lightning_backdoor.commands.parsing.known_options import AUTO, BASES, OBJECTS, PRECISION_SUMMARY
from lightning_backdoor.commands.parsing.parse_errors import parse_error
from lightning_backdoor.errors import InputError, input_error_behind
from lightning_backdoor.files.bounded_yaml import out_of_bounds, read_bounded
from lightning_backdoor.files.names import is_file
from lightning_backdoor.files.presets import preset_path

#: options of the trainer's method of the same name whose default differs from Lightning's.
METHOD_DEFAULTS: dict[str, dict[str, bool]] = {
    "fit": {},
    "validate": {"verbose": False},  # the command prints a table of its own
    "test": {"verbose": False},
    "predict": {"return_predictions": False},  # predictions are written to a file, not returned
}
#: beginning of the configs that commands write.
HEADER = "# lightning.pytorch=="
#: mode of jsonargparse in which every text, of files and of options, is checked before it is read.
BOUNDED = "bounded_yaml"
#: the corrected content of the configs that are being parsed, by their text.
_corrected: ContextVar[Mapping[str, Any]] = ContextVar("_corrected")


def load_bounded(text: str) -> Any:
    """Reads YAML as jsonargparse does, once it is known to be within bounds.

    Raises:
        InputError: :func:`lightning_backdoor.files.bounded_yaml.out_of_bounds` finds a problem.
        YAMLError: the text is not YAML.
    """
    if text in _corrected.get({}):
        return deepcopy(_corrected.get()[text])
    problem = out_of_bounds(text)
    if problem:
        raise InputError("options", f"{text[:40]!r} {problem}", "correct it")
    try:
        return get_loader("yaml")(text)
    except yaml.YAMLError:
        raise
    except Exception as error:  # whatever Python raises for dates and numbers that are none
        raise yaml.YAMLError(f"a value is malformed: {error}") from None


class PresetConfigFile(ActionConfigFile):
    """The option ``--config``: a config file, or a preset if the working directory has no file of that name."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        """Adds the options in the file to those read so far."""
        preset = preset_path(values)
        # jsonargparse also accepts URLs and YAML instead of a path: these are passed on unchanged
        given = values if preset == Path(values) else str(preset)
        text = read_bounded(preset) if is_file(preset) else ""
        super().__call__(parser, cfg, given, option_string)  # type: ignore[no-untyped-call]
        content = load_bounded(text) if text.startswith(HEADER) else None
        run = None if content is None else _moved_run(preset, content)
        if content is not None and run is not None:
            cfg.run_dir = str(run)
            loggers = cfg.get("trainer.logger")
            for logger in loggers if isinstance(loggers, list) else [loggers]:
                if isinstance(logger, Namespace) and logger.get("init_args.save_dir") == content["run_dir"]:
                    logger.init_args.save_dir = str(run)


def _moved_run(path: Path, content: Any) -> Path | None:
    """The folder of the run that a command wrote this config for, if that folder has been moved or copied since.

    Args:
        path: the config.
        content: its content.
    """
    if path.name != "config.yaml":
        return None
    recorded = content.get("run_dir") if isinstance(content, dict) else None
    if not isinstance(recorded, str):
        return None
    folder = path.resolve().parent
    for run in (folder, folder.parent):  # the config of a test lies in a folder in the run's
        if (run / "checkpoints").is_dir() and (run / "config.yaml").is_file():
            return run if run != Path(recorded).resolve() else None
    return None


class RunParser(LightningArgumentParser):
    """The parser of a command, and of the classes in its options: no option may be abbreviated."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})
        self.command = ""
        self.extra: tuple[str, ...] = ()

    def add_class_arguments(self, class_type: Any, nested_key: str | None = None, *args: Any, **kwargs: Any) -> Any:
        """Adds the arguments of a class as jsonargparse does; a logger need not be given a folder: it is the run's."""
        added = super().add_class_arguments(class_type, nested_key, *args, **kwargs)
        if issubclass(class_type, Logger) and "save_dir" in added and self.get_defaults()["save_dir"] is None:
            self.set_defaults(save_dir=".")
        return added


def run_parser(command: str, prog: str = "", extra: tuple[str, ...] = ()) -> RunParser:
    """The parser of a command.

    Args:
        command: ``fit``, ``validate``, ``test`` or ``predict``.
        prog: the name in help and usage, if it differs from the command's.
        extra: options that are accepted and have no effect.
    """
    set_loader(BOUNDED, load_bounded, exceptions=(yaml.YAMLError,))
    parser = RunParser(
        parser_mode=BOUNDED,
        prog=prog or f"lightning-backdoor {command}",
        description=DESCRIPTIONS[command],
        dump_header=[f"{HEADER.removeprefix('# ')}{lightning.__version__}"],
        exit_on_error=False,
    )
    parser.command, parser.extra = command, extra
    parser.add_argument(
        "-c", "--config", action=PresetConfigFile, help="A YAML file with options, or a preset; repeatable."
    )
    parser.add_argument("--seed_everything", type=int, default=0, help="Seed of every random choice.")
    # as `add_lightning_class_args` does, but for the precision
    parser.add_class_arguments(
        Trainer, "trainer", fail_untyped=False, instantiate=False, sub_configs=True, skip={"precision"}
    )
    precision = inspect.signature(Trainer).parameters["precision"].annotation
    parser.add_argument(
        "--trainer.precision",
        type=Union[Literal[AUTO], precision],  # noqa: UP007 - of values that are known when it runs
        default=AUTO,
        help=PRECISION_SUMMARY,
    )
    parser.add_lightning_class_args(LightningModule, "model", subclass_mode=True)
    parser.add_lightning_class_args(LightningDataModule, "data", subclass_mode=True)
    parser.add_argument(
        "--run_dir", type=str | None, default=None, help="The run's folder (default: a new one in runs/)."
    )
    parser.add_argument(  # an option of fit; the others read the configs that fit writes
        "--keep_last", type=bool, default=False, help="Whether fit keeps last.ckpt, to train longer later."
    )
    parser.link_arguments("seed_everything", "data.init_args.seed")
    parser.add_method_arguments(Trainer, command, skip={*OBJECTS})
    for name in extra:
        parser.add_argument(f"--{name}", type=bool, default=False)
    # weights_only: Lightning would load a checkpoint from the web by pickle, which may run code
    parser.set_defaults({"trainer.max_epochs": 3, "weights_only": True, **METHOD_DEFAULTS[command]})
    return parser


def parse(parser: RunParser, args: list[str]) -> Namespace:
    """Parses the options of a command.

    Raises:
        InputError: the options cannot be parsed; the message names the option.
        SystemExit: ``--help`` or ``--print_config`` is among them.
    """
    corrected = settled(parser.command, args, parser.prog, parser.extra, load_bounded)
    token = _corrected.set(corrected.files)
    try:
        options: Namespace = parser.parse_args(corrected.args)
    except ArgumentError as error:
        raise input_error_behind(error) or parse_error(error, parser.prog) from error
    finally:
        _corrected.reset(token)
    if not 0 <= options.seed_everything < 2**32:
        raise InputError("seed_everything", f"{options.seed_everything} is not a seed", "give one from 0 to 2**32 - 1")
    for field in (*BASES, "trainer.callbacks"):
        _check_nulls(options.get(field), field)
    return options


def _check_nulls(options: Any, field: str) -> None:
    """Checks that no argument of a class is null where its signature says otherwise; jsonargparse takes null as unset.

    Raises:
        InputError: an argument is null, as YAML reads a name without a value.
    """
    if isinstance(options, list):
        for entry in options:
            _check_nulls(entry, field)
    if not isinstance(options, Namespace) or not isinstance(options.get("init_args"), Namespace):
        return
    made = pydoc.locate(options.class_path)
    for name, value in vars(options.init_args).items():
        if value is None and not _takes_null(made, name):
            raise InputError(f"{field}.{name}", "null is not one of its values", "give a value, or leave it out")
        _check_nulls(value, f"{field}.{name}")


def _takes_null(made: object, name: str) -> bool:
    """Whether a class, or another callable, takes null for an argument, which one of its parents may declare."""
    for function in [vars(cls).get("__init__") for cls in made.__mro__] if isinstance(made, type) else [made]:
        parameter = inspect.signature(function).parameters.get(name) if callable(function) else None
        if parameter is not None:
            types = str(parameter.annotation)
            declared = parameter.annotation is not parameter.empty and parameter.default is not None
            return not declared or any(word in types for word in ("None", "Optional", "Any", "object"))
    return True
