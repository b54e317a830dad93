"""The working directory on the import path: after all packages for commands that read configs, absent for ``scan``."""

from __future__ import annotations

import os
import sys


def working_directory_last() -> None:
    """Puts the working directory at the end of the import path, so that a config may name a class in it.

    It comes after all packages, so that no file in it replaces a module of one. A path that has it already, as in an
    interactive session, is left as it is.
    """
    if not any(map(_is_working_directory, sys.path)):
        sys.path.append(os.getcwd())  # noqa: PTH109 - sys.path holds strings


def without_working_directory() -> None:
    """Takes the working directory off the import path, under whatever name it is there."""
    sys.path[:] = [path for path in sys.path if not _is_working_directory(path)]


def _is_working_directory(path: str) -> bool:
    return os.path.realpath(path or ".") == os.path.realpath(".")
