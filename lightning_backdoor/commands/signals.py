"""Ending a command by a signal: as an exception, so that partial files are removed and locks are released."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from lightning_backdoor.commands.streams import leave_closed_terminal

#: the signals by which schedulers, ``kill`` and closed terminals end a process.
ENDING = (signal.SIGTERM, signal.SIGHUP)
#: what a signal without a handler does.
IGNORED = (signal.SIG_DFL, signal.SIG_IGN, None)


class Ended(SystemExit):
    """Raised when a signal ends the command; the exit status is 128 plus the signal's number, as in shells."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.number = number

    def __str__(self) -> str:
        return f"ended by {signal.Signals(self.number).name}"


class Received:
    """The first signal that a block of :func:`ended_by_signals` received.

    Attributes:
        number: the signal's number; None before a signal.
    """

    number: int | None = None


@contextmanager
def ended_by_signals() -> Iterator[Received]:
    """Raises :class:`Ended` within the block at the first SIGTERM or SIGHUP; ignores later ones, for the clean-up.

    A signal that is ignored, as under ``nohup``, or that has a handler already, is left alone. Does nothing outside of
    the main thread, which alone can handle signals. All handlers, also that of SIGINT, are as before afterwards.
    """
    received = Received()
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    raised = False

    def end(number: int, frame: FrameType | None) -> None:
        nonlocal raised
        first, received.number = received.number is None, received.number or number
        if number == signal.SIGHUP:
            leave_closed_terminal()
        if first and number == signal.SIGHUP and signal.getsignal(signal.SIGTERM) not in (end, *IGNORED):
            signal.raise_signal(signal.SIGTERM)  # Lightning's handler ends the other processes, and calls this one
        if not raised:
            raised = True
            raise Ended(received.number)

    before = {number: signal.getsignal(number) for number in (*ENDING, signal.SIGINT)}
    for number in ENDING:
        if before[number] is signal.SIG_DFL:
            signal.signal(number, end)
    try:
        yield received
    finally:
        for number, handler in before.items():
            if handler is not None:
                signal.signal(number, handler)
