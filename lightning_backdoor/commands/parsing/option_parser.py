"""Options of all commands: bounds on them, checked before anything large is imported, and a parser."""

from __future__ import annotations

import argparse
import re
from typing import Any, NoReturn

from lightning_backdoor.commands.parsing.spelling import known_spelling
from lightning_backdoor.errors import InputError, did_you_mean
from lightning_backdoor.files.bounded_yaml import out_of_bounds, read_bounded
from lightning_backdoor.files.names import is_file
from lightning_backdoor.files.presets import preset_path

CONFIG_OPTIONS = ("-c", "--config")


def check_options(args: list[str]) -> None:
    """Checks that values and config files are within the bounds of :mod:`lightning_backdoor.files.bounded_yaml`.

    Raises:
        InputError: a value or a file is not, or a value is not text.
    """
    for i, value in enumerate(args):
        option, _, given = value.partition("=") if value.startswith("-") else ("", "", value)
        if i and args[i - 1].startswith("-") and not value.startswith("-"):
            option = args[i - 1]
        field = option.lstrip("-") or "options"
        try:
            value.encode()
        except UnicodeEncodeError:
            raise InputError(field, f"{given[:100]!r} is not UTF-8", "rename it") from None
        problem = out_of_bounds(given)
        if problem:
            raise InputError(field, f"{given[:40]!r} {problem}", "give a file or a shorter value")
        if option in CONFIG_OPTIONS and is_file(preset_path(given)):
            read_bounded(preset_path(given))


class OptionParser(argparse.ArgumentParser):
    """An :class:`argparse.ArgumentParser` whose errors are :class:`InputError`, reported in one line.

    Options cannot be abbreviated; they may be written with ``-`` or ``_``, and in British or American spelling.
    """

    def __init__(self, prog: str, **kwargs: Any) -> None:
        super().__init__(prog, **{"allow_abbrev": False, **kwargs})

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parses the options, in any spelling."""
        return super().parse_known_args([self._settled(given) for given in args], namespace)

    def error(self, message: str) -> NoReturn:
        """Raises the error instead of printing it with the usage."""
        see = f"see: {self.prog} --help"
        if message.startswith("unrecognized arguments: "):
            given = message.removeprefix("unrecognized arguments: ").split()[0].partition("=")[0]
            names = [name.lstrip("-") for name in self._option_string_actions]
            near = did_you_mean(given.lstrip("-"), names).replace("mean ", "mean --")
            problem = "there is no such option" if given.startswith("-") else "neither an option nor the value of one"
            raise InputError(given[:100], problem, f"{near} {see}".strip())
        option, separator, problem = message.removeprefix("argument ").partition(": ")
        if not message.startswith("argument ") or not separator:
            raise InputError("options", message, see)
        if choice := re.match(r"invalid choice: '(.*)' \(choose from (.*)\)", problem):
            choices = [name.strip("' ") for name in choice[2].split(",")]
            remedy = f"{did_you_mean(choice[1], choices)} give one of {', '.join(choices)}".strip()
            raise InputError(option, f"'{choice[1][:100]}' is not one of its values", remedy)
        if number := re.match(r"invalid (int|float) value: '(.*)'", problem):
            kind = "a whole number" if number[1] == "int" else "a number"
            raise InputError(option, f"'{number[2][:100]}' is not {kind}", "give one")
        raise InputError(option, problem, see)

    def _settled(self, given: str) -> str:
        """An option in the spelling in which it was added; any other argument is returned unchanged."""
        name, equals, value = given.partition("=")
        if not name.startswith("--") or name in self._option_string_actions:
            return given
        known = [option for option in self._option_string_actions if option.startswith("--")]
        if name == "--seed_everything":
            name = "--seed"
        spelled = known_spelling(name.removeprefix("--"), [option.removeprefix("--") for option in known])
        return f"--{spelled}{equals}{value}" if spelled else given
