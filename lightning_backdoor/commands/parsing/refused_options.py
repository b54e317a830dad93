"""Options that cannot be used, or that Lightning refuses when it creates an object: one line that names the option."""

from __future__ import annotations

import gc
import inspect
import logging
import re
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer

from lightning_backdoor.errors import InputError, input_error_behind, one_line, reason

#: errors by which Lightning refuses options.
REFUSALS = (MisconfigurationException, ImportError, AttributeError, RuntimeError, TypeError, ValueError)
#: what to give instead of an option, where it can be said without knowing the machine.
REMEDIES = {"accelerator": "give auto, or cpu", "logger": "install what it needs, or leave it out"}
#: names of Lightning's strategies under which no process holds whole weights.
SHARDING = re.compile("fsdp|deepspeed|model_?parallel", re.IGNORECASE)


def check_strategy(strategy: object) -> None:
    """Refuses strategies that keep the weights in parts, before anything is trained that could not be exported.

    Args:
        strategy: the trainer's option: a name, or a class path with arguments.

    Raises:
        InputError: it is such a strategy.
    """
    name = str(getattr(strategy, "class_path", strategy)).rpartition(".")[2]
    if SHARDING.search(name):
        problem = f"{name} keeps the weights in parts, and a victim is exported from whole weights by one process"
        raise InputError("trainer.strategy", problem, "give ddp; --model.lora_rank trains large models in less memory")


@contextmanager
def refused_classes_named(config: Namespace) -> Iterator[None]:
    """Names the option whose class a library cannot create, such as a logger whose package is not installed.

    Args:
        config: the options of the command.

    Raises:
        InputError: raised in the block, whatever replaced it; or the class is Lightning's, or needs a package that is
            not installed.
    """
    refused: InputError | None = None
    with _quiet_destructors():
        try:
            yield
        except Exception as error:
            refused = input_error_behind(error) or _refused_class(error, config)
            if refused is None:
                raise  # a fault of a user's own class, whose traceback is wanted
        if refused is not None:
            gc.collect()  # what was half made, whose destructors would complain later
    if refused is not None:
        raise refused


@contextmanager
def refused_options_named(options: Mapping[str, Any]) -> Iterator[None]:
    """Names the option of the trainer that Lightning refuses in the block, such as a device that there is not.

    Args:
        options: the trainer's options, as arguments of ``Trainer``.

    Raises:
        InputError: an option is refused.
    """
    with _quiet_destructors():
        problem = ""
        try:
            yield
        except REFUSALS as error:
            known = input_error_behind(error)
            if known is not None:
                raise known from error
            problem = reason(error)
        if not problem:
            return
        gc.collect()  # what was half made, whose destructors would complain later
        name = _refused_option(dict(options))
    if not name:
        raise InputError("trainer", problem)
    value = options[name]
    if isinstance(value, str | int | float):
        problem = f"{value} cannot be used ({problem})"
    raise InputError(f"trainer.{name}", problem, REMEDIES.get(name, ""))


def _refused_class(error: Exception, config: Namespace) -> InputError | None:
    """The error about a class that cannot be created, from the messages of jsonargparse."""
    refused = re.search(r"Problem with given class_path '([\w.]+)':\s*(\S.*)", str(error))  # private: jsonargparse 4.53
    innermost: BaseException = error
    while innermost.__cause__ is not None:
        innermost = innermost.__cause__
    if refused is None or not (refused[1].startswith("lightning.") or isinstance(innermost, ImportError)):
        return None
    path = refused[1]
    keys = (key.removesuffix(".class_path") for key, value in _items(config) if value == path)
    field = next(keys, "options")
    return InputError(field, f"{path} cannot be created ({one_line(refused[2])})", REMEDIES.get(field[8:], ""))


def _items(config: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """The texts in a config by dotted key; entries of a list have the list's key."""
    if isinstance(config, Namespace):
        for name, value in vars(config).items():
            yield from _items(value, f"{key}.{name}" if key else name)
    elif isinstance(config, list):
        for value in config:
            yield from _items(value, key)
    elif isinstance(config, str):
        yield key, config


def _refused_option(options: dict[str, Any]) -> str:
    """The option without which a trainer can be created; empty if it is not one option alone."""
    defaults = {name: parameter.default for name, parameter in inspect.signature(Trainer).parameters.items()}
    defaults["logger"] = False
    given = [name for name, value in options.items() if name in defaults and value is not defaults[name]]
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # Lightning says which devices each trainer uses
    try:
        for name in given:
            with warnings.catch_warnings(action="ignore"), suppress(Exception):
                Trainer(**{**options, name: defaults[name]})
                return name
    finally:
        logging.disable(before)
    return ""


@contextmanager
def _quiet_destructors() -> Iterator[None]:
    """Hides errors of destructors within the block: those of profilers fail if their constructors have."""
    before = sys.unraisablehook
    sys.unraisablehook = lambda unraisable: None
    try:
        yield
    finally:
        sys.unraisablehook = before
