"""A parser of options that reports what is wrong like any other invalid input: in one line, with escaped characters."""

from __future__ import annotations

import argparse
from typing import NoReturn

from lightning_backdoor.errors import InputError


class OptionParser(argparse.ArgumentParser):
    """An :class:`argparse.ArgumentParser` whose errors are :class:`InputError`."""

    def error(self, message: str) -> NoReturn:
        """Raises the error instead of printing it with the usage."""
        option, separator, problem = message.removeprefix("argument ").partition(": ")
        known = message.startswith("argument ") and separator
        remedy = f"see {self.prog} --help"
        raise InputError(option if known else "options", problem if known else message, remedy)
