"""The loggers of a command: what it tells Weights & Biases about its run, and the csv log beside it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.loggers import WandbLogger

from lightning_backdoor.callbacks.run_labels import run_labels, training_names
from lightning_backdoor.errors import InputError
from lightning_backdoor.files.names import short_name
from lightning_backdoor.outputs.wandb_names import FORBIDDEN, LONGEST, LONGEST_TAG, RunNames, run_names

CSV_LOGGER = "lightning.pytorch.loggers.CSVLogger"
#: environment variables by which W&B takes the names of a run.
VARIABLES = {"name": "WANDB_NAME", "group": "WANDB_RUN_GROUP", "job_type": "WANDB_JOB_TYPE"}


def check_wandb_names(logger: Namespace) -> None:
    """Checks the names that a ``WandbLogger`` of the options is given, which fails on wrong ones as training begins.

    Raises:
        InputError: a name or tag is longer than W&B takes, or a project's name has a character that it does not take.
    """
    given = {**vars(logger.get("init_args") or Namespace()), **(logger.get("dict_kwargs") or {})}  # type: ignore[no-untyped-call]
    for name, longest in LONGEST.items():
        value = given.get(name)
        if isinstance(value, str) and len(value) > longest:
            problem = f"{value[:40]!r}… has {len(value)} characters"
            raise InputError(f"trainer.logger.{name}", problem, f"give at most {longest}")
    project = given.get("project")
    if isinstance(project, str) and set(project) & set(FORBIDDEN):
        raise InputError("trainer.logger.project", f"is {project!r}", f"give none of {' '.join(FORBIDDEN)}")
    for tag in given.get("tags") or ():
        if not 1 <= len(str(tag)) <= LONGEST_TAG:
            problem = f"{str(tag)[:40]!r} has {len(str(tag))} characters"
            raise InputError("trainer.logger.tags", problem, f"give 1 to {LONGEST_TAG}")


def with_csv_log(loggers: Any) -> Any:
    """The loggers of the options; a ``CSVLogger`` that writes ``logs`` is added to those with a ``WandbLogger``."""
    given = loggers if isinstance(loggers, list) else [loggers]
    classes = [str(logger.class_path).rpartition(".")[2] for logger in given if isinstance(logger, Namespace)]
    if "WandbLogger" not in classes or "CSVLogger" in classes:
        return loggers
    arguments = Namespace(save_dir=None, name="logs")  # type: ignore[no-untyped-call]
    return [*given, Namespace(class_path=CSV_LOGGER, init_args=arguments)]  # type: ignore[no-untyped-call]


def names_of_run(command: str, model: LightningModule, data: object, callbacks: Sequence[Callback]) -> RunNames:
    """The names under which a command logs to W&B: those that a grid gives a victim (``fit``) or a cell (``test``)."""
    labels = run_labels(model, data, callbacks)
    training = "+".join(training_names(model, data, callbacks))
    defense = training if command == "fit" else labels["defense"]
    parts = [short_name(str(labels[name])) for name in ("dataset", "model")]
    job_types = {"fit": "train", "test": defense}
    return run_names([*parts, labels["attack"], defense], labels["seed"], job_types.get(command, command))


def tell_wandb(loggers: Iterable[object], names: RunNames, config: Mapping[str, Any]) -> None:
    """Gives the W&B loggers the names and the config of their runs, which begin later.

    Names that the user gave, as options or in W&B's environment variables, are kept; tags and config are added to the
    user's.
    """
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            arguments: dict[str, Any] = logger._wandb_init  # private: lightning 2.6, which has no setter
            for name, variable in VARIABLES.items():
                if arguments.get(name) is None and variable not in os.environ:
                    arguments[name] = names[name]  # type: ignore[literal-required]
            arguments["tags"] = [*dict.fromkeys([*names["tags"], *(arguments.get("tags") or [])])]
            given = arguments.get("config")
            if given is None or isinstance(given, Mapping):
                arguments["config"] = {**config, **(given or {})}


def run_config(command: str, options: str) -> dict[str, Any]:
    """The config of a run in W&B: the command's options, without those of the loggers, under the command's name.

    Args:
        command: ``fit``, ``validate``, ``test`` or ``predict``.
        options: the options as JSON.
    """
    given: dict[str, Any] = json.loads(options)
    given.get("trainer", {}).pop("logger", None)
    return {command: given}
