"""``completion``: a script that lets bash or zsh complete commands, options, class names and presets."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from typing import Any

from lightning_backdoor.commands.parsing.help_pages import NOT_LISTED, option_names
from lightning_backdoor.commands.parsing.known_options import PRECISIONS, root_options, trainer_options
from lightning_backdoor.commands.parsing.option_parser import OptionParser
from lightning_backdoor.errors import InputError
from lightning_backdoor.files.class_sources import Argument, class_arguments, find_class
from lightning_backdoor.files.presets import preset_names
from lightning_backdoor.files.public_classes import public_classes

#: commands whose options are those of ``fit``.
RUN_COMMANDS = ("fit", "validate", "test", "predict")
#: options that name files or folders.
PATHS = {"--run_dir", "--ckpt_path", "--output", "--input", "--calibration", "--data.source.path", "--trainer"}
#: completes presets and the files that there are.
CONFIG = {"bash": "_lightning_backdoor_config", "zsh": "_lightning_backdoor_config"}
PREAMBLE = {
    "bash": '_lightning_backdoor_config() {{ compgen -W "{presets}" -- "$1"; compgen -f -- "$1"; }}\n',
    "zsh": "_lightning_backdoor_config() {{ _files; compadd -- {presets} }}\n",
}


def parser() -> OptionParser:
    """The options of ``completion``."""
    options = OptionParser(
        "lightning-backdoor completion",
        description="Writes a script that completes commands, options, class names and presets with the tab key. For"
        ' bash: eval "$(lightning-backdoor completion bash)" in ~/.bashrc. Needs the package shtab: pip install'
        " 'lightning-backdoor[completion]'.",
    )
    options.add_argument("shell", choices=("bash", "zsh"), help="the shell")
    return options


def main(args: list[str], descriptions: Mapping[str, str], parsers: Mapping[str, argparse.ArgumentParser]) -> int:
    """Runs ``completion``; returns the exit status.

    Args:
        args: the options.
        descriptions: the commands, and what each does.
        parsers: the parsers of the commands that are not run by the options of ``fit``.

    Raises:
        InputError: shtab is not installed.
    """
    shell = parser().parse_args(args).shell
    try:
        import shtab
    except ImportError:
        remedy = "run: pip install 'lightning-backdoor[completion]'"
        raise InputError("completion", "the package shtab is not installed", remedy) from None
    whole = argparse.ArgumentParser("lightning-backdoor", description="", allow_abbrev=False)
    commands = whole.add_subparsers(dest="command")
    for name, description in descriptions.items():
        command = commands.add_parser(name, help=description, add_help=name not in parsers)
        if name in parsers:
            _copy(parsers[name], command)
        if name in RUN_COMMANDS or name == "poison":
            _add_options(command, "fit" if name == "poison" else name)
        for action in command._actions:  # private: argparse offers no list of a parser's options
            if {*action.option_strings} & PATHS:
                action.complete = shtab.FILE  # type: ignore[attr-defined]
            elif "--config" in action.option_strings:
                action.complete = CONFIG  # type: ignore[attr-defined]
    presets = " ".join(preset_names())
    preamble = {name: text.format(presets=presets) for name, text in PREAMBLE.items()}
    script: str = shtab.complete(whole, shell, root_prefix="lightning_backdoor", preamble=preamble)  # type: ignore[arg-type]
    sys.stdout.write(script)
    return 0


def _copy(source: argparse.ArgumentParser, target: argparse.ArgumentParser) -> None:
    """Adds the options of one parser to another."""
    for action in source._actions:  # private: argparse offers no list of a parser's options
        target._add_action(action)


def _add_options(command: argparse.ArgumentParser, of: str) -> None:
    """Adds the options of ``fit`` or its like, with those of all attacks and of the data."""
    groups: list[tuple[str, Mapping[str, Argument]]] = [("", root_options(of)), ("trainer.", trainer_options().by_name)]
    classes: dict[str, list[str]] = {"--model": [], "--data": [], "--trainer.callbacks+": []}
    for item in public_classes():
        source = find_class(item.class_path)
        ancestors = source.ancestors() if source else set()
        for option, base in zip(classes, ("LightningModule", "LightningDataModule", "Callback"), strict=True):
            if source is not None and base in ancestors:
                classes[option] += [] if item.name in NOT_LISTED else [item.name]
                if option != "--trainer.callbacks+":
                    groups.append((f"{option[2:]}.", class_arguments(source).by_name))
    names = [name for prefix, arguments in groups for name in option_names(prefix, arguments)]
    values = {**classes, "--trainer.precision": PRECISIONS}
    taken = set(command._option_string_actions)
    for name in dict.fromkeys([*names, *classes]):
        if name not in taken:
            short: list[Any] = ["-c"] if name == "--config" else []
            command.add_argument(*short, name, choices=values.get(name))
    for name in ("--seed", "--print_config", "--help=all"):
        command.add_argument(name, dest=name)
