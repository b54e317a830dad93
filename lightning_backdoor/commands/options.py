"""Options of all commands: bounds on them, checked before anything large is imported, and a parser."""

from __future__ import annotations

import argparse
from typing import NoReturn

from lightning_backdoor.errors import InputError
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
    """An :class:`argparse.ArgumentParser` whose errors are :class:`InputError`, reported in one line."""

    def error(self, message: str) -> NoReturn:
        """Raises the error instead of printing it with the usage."""
        option, separator, problem = message.removeprefix("argument ").partition(": ")
        known = message.startswith("argument ") and separator
        remedy = f"see {self.prog} --help"
        raise InputError(option if known else "options", problem if known else message, remedy)
