"""Output after the terminal was closed, which sends SIGHUP to its commands."""

from __future__ import annotations

import os
import sys
from pathlib import Path


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
