"""The standard streams of a command: usable where they or the terminal are closed, or lack characters."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

#: names of the standard streams that were closed when the command started.
closed_at_start: set[str] = set()


def prepare_streams() -> None:
    """Opens standard streams that are closed, and lets output escape characters that its encoding does not have."""
    for descriptor, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            _occupy(descriptor)
            setattr(sys, name, open(descriptor, mode, encoding="utf-8", closefd=False))  # noqa: SIM115
            closed_at_start.add(name)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def drop_output() -> None:
    """Sends what is still to be written to standard output nowhere, so that it cannot fail again at exit."""
    try:
        descriptor = sys.stdout.fileno()
    except (OSError, ValueError):  # replaced by an object without a descriptor
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)


def leave_closed_terminal() -> None:
    """Sends output that would go to a closed terminal nowhere, since writing to it is an error."""
    for name in ("stdout", "stderr"):
        try:
            descriptor = getattr(sys, name).fileno()
        except (OSError, ValueError):  # replaced by an object without a descriptor
            continue
        try:
            os.write(descriptor, b"")
        except OSError:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 - until the process ends


def _occupy(descriptor: int) -> None:
    """Opens a closed descriptor, since the next file that is opened would get it, and with it all that is printed."""
    try:
        os.fstat(descriptor)
    except OSError:
        nowhere = os.open(os.devnull, os.O_RDWR)
        if nowhere != descriptor:
            os.dup2(nowhere, descriptor)
            os.close(nowhere)
