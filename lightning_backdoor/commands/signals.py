"""Ending a command by SIGTERM or SIGHUP: an exception unwinds it, so that locks and child processes are not left."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

#: the signals that end a command.
ENDING = (signal.SIGTERM, signal.SIGHUP)
#: seconds after a signal in which further ones are ignored, so that they do not interrupt the unwinding; a closed
#: terminal sends SIGHUP twice.
UNWINDING_SECONDS = 10.0


class Stopped(SystemExit):
    """A signal ended the command: an exit with status 128 plus the signal's number, 143 for SIGTERM, 129 for SIGHUP.

    Args:
        number: the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.signal = signal.Signals(number)


@contextmanager
def stopped_by_signals(advice: str = "") -> Iterator[None]:
    """Within this context, SIGTERM and SIGHUP raise :class:`Stopped` in the main thread.

    The outermost context reports the signal in one line on standard error. A signal that the process ignores, as
    under ``nohup``, stays ignored, and a signal with a handler keeps it. Other threads than the main thread cannot set
    handlers: there the context does nothing.

    Args:
        advice: how to continue, printed after the signal's name.
    """
    numbers = [number for number in ENDING if signal.getsignal(number) == signal.SIG_DFL]
    if not numbers or threading.current_thread() is not threading.main_thread():
        yield
        return
    terminals = [name for name in ("stdout", "stderr") if getattr(sys, name).isatty()]

    def stop(number: int, frame: FrameType | None) -> None:
        if not is_repeated():
            if number == signal.SIGHUP:
                for name in terminals:  # the terminal is gone, and writing to it would be an error
                    setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115 - open until the process ends
            raise Stopped(number)

    for number in numbers:
        signal.signal(number, stop)
    try:
        yield
    except Stopped as stopped:
        sys.stderr.write(f"error: stopped by {stopped.signal.name}{f'; {advice}' if advice else ''}\n")
        raise
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


def is_repeated() -> bool:
    """Whether a signal handler asked the same in the last seconds: the signal may be ignored, since one unwinds."""
    global _last
    earlier, _last = _last, time.monotonic()
    return _last - earlier < UNWINDING_SECONDS


_last = -UNWINDING_SECONDS
