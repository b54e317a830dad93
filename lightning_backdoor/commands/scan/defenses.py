"""Creating the defenses of a scan: this library's, those of installed packages, and those in a file that is named."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser

from lightning_backdoor.commands.scan.calibration import Guard
from lightning_backdoor.commands.scan.defense_options import DefenseOption, defense_file
from lightning_backdoor.defenses.defense import Defense
from lightning_backdoor.errors import InputError, input_error_behind, reason


def defense_class(option: DefenseOption) -> type[Defense]:
    """The class of a defense.

    Nothing is imported from the working directory, which may be the folder of an untrusted model, unless the option
    names a file in it.

    Raises:
        InputError: there is no such class, it cannot be imported, or it is not an inference-time defense.
    """
    file = defense_file(option.target)
    if file is not None:
        module, name = _module_of_file(file[0]), file[1]
        own = [n for n, made in vars(module).items() if _is_defense(made) and made.__module__ == module.__name__]
        if name is None and len(own) != 1:
            problem = f"{file[0]} has {len(own)} defenses" + (f" ({', '.join(own)})" if own else "")
            raise InputError("defense", problem, f"name the class: {file[0]}:{own[0] if own else 'CLASS'}")
        name = name or own[0]
    else:
        path, _, name = option.target.rpartition(".")
        module = _module(path, option.target)
    made = getattr(module, name, None)
    if made is None:
        raise InputError("defense", f"{module.__name__} has no class {name}", "correct its name")
    if not _is_defense(made):
        raise InputError(
            "defense",
            f"{option.target} is not an inference-time defense",
            "give a class that inherits from lightning_backdoor.defenses.Defense and implements score",
        )
    return made  # type: ignore[no-any-return]


def create(option: DefenseOption, made: type[Defense], fpr: float | None, seed: int) -> Defense:
    """A defense with its arguments.

    Args:
        option: the defense as it was asked for.
        made: its class.
        fpr: the budget of a defense that does not have one among its arguments; None for its default.
        seed: the seed of a defense that has none.

    Raises:
        InputError: an argument is unknown or its value cannot be used.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(made, "defense", fail_untyped=False, sub_configs=True)
    known = inspect.signature(made).parameters
    for argument in option.arguments:
        if argument.partition(".")[0] not in known and not any(p.kind is p.VAR_KEYWORD for p in known.values()):
            there_is = ", ".join(known) or "none"
            raise InputError(f"defense.{argument}", f"{option.name} has no such argument", f"it has {there_is}")
    args = [f"--defense.{argument}={value}" for argument, value in option.arguments.items()]
    try:
        defense: Defense = parser.instantiate_classes(parser.parse_args(args)).defense
    except (ArgumentError, ValueError) as error:
        bad_input = input_error_behind(error)
        if bad_input is not None:
            field = bad_input.field
            raise bad_input.under(f"defense.{field}" if field in option.arguments else field) from None
        if not isinstance(error, ArgumentError):
            raise
        key = re.search(r'Parser key "([^"]+)"', str(error))  # private: jsonargparse 4.53.0
        raise InputError(key[1] if key else "defense", reason(error, 200)) from None
    if fpr is not None and "fpr" not in option.arguments:
        if not 0 < fpr < 1:
            raise InputError("fpr", f"{fpr} is not a share of clean texts", "give a number above 0 and below 1")
        defense.fpr = fpr
    if defense.seed is None:
        defense.seed = seed
    return defense


def create_all(
    options: Sequence[DefenseOption], fpr: float | None, seed: int
) -> tuple[list[Guard], dict[str, dict[str, Any]]]:
    """The defenses of a scan, and what determines their results; see :func:`create` and :func:`description`.

    Raises:
        InputError: one of them cannot be created.
    """
    classes = [defense_class(option) for option in options]
    guards = [
        Guard(option.name, create(option, made, fpr, seed)) for option, made in zip(options, classes, strict=True)
    ]
    return guards, {option.name: description(option, made) for option, made in zip(options, classes, strict=True)}


def description(option: DefenseOption, made: type[Defense]) -> dict[str, Any]:
    """What determines the results of a defense: class, arguments and, of classes of others, their source code."""
    source = inspect.getsourcefile(made)
    ours = made.__module__.partition(".")[0] == "lightning_backdoor"
    code = None if ours or source is None else hashlib.sha256(Path(source).read_bytes()).hexdigest()
    path = f"{made.__module__}.{made.__qualname__}" if defense_file(option.target) is None else made.__qualname__
    return {"class": path, "arguments": dict(sorted(option.arguments.items())), "source": code}


def _is_defense(made: object) -> bool:
    return isinstance(made, type) and issubclass(made, Defense) and not inspect.isabstract(made)


def _module(path: str, target: str) -> ModuleType:
    try:
        return importlib.import_module(path)
    except Exception as error:  # the module's code may raise anything
        here = Path(*path.split(".")).with_suffix(".py")
        remedy = "give the class path of an installed package, or FILE.py:CLASS"
        if here.is_file():
            name = target.rpartition(".")[2]
            remedy = f"scan imports nothing from the working directory by itself; give {here}:{name}"
        raise InputError("defense", f"{target[:100]!r} cannot be imported: {reason(error, 200)}", remedy) from None


def _module_of_file(path: Path) -> ModuleType:
    """Runs a Python file that the user names; its folder is not put on the import path."""
    if not path.is_file():
        raise InputError("defense", f"there is no file {path}", "give one that exists")
    name = f"scan_defense_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickling look the module up
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # the file's code may raise anything
        del sys.modules[name]
        raise InputError("defense", f"{path} cannot be run: {reason(error, 200)}", "correct it") from None
    return module
