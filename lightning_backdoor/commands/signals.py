"""Ending a command by a signal: as an exception, so that partial files are removed and locks are released."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from lightning_backdoor.commands.streams import leave_closed_terminal

#: the signals by which schedulers, ``kill`` and closed terminals end a process.
ENDING = (signal.SIGTERM, signal.SIGHUP)
#: what a signal without a handler does.
IGNORED = (signal.SIG_DFL, signal.SIG_IGN, None)


#: what an ended command leaves and how it goes on, as :func:`when_ended` was last told.
_left: Callable[[], str] | None = None
#: what commands leave that say nothing else.
NOTHING_KEPT = "nothing was written; run the same command again"


def when_ended(left: Callable[[], str]) -> None:
    """Says what the running command leaves if it is ended from now on.

    Args:
        left: gives the end of the line that reports the signal: what is kept, and which command goes on.
    """
    global _left
    _left = left


@contextmanager
def as_part_of_another() -> Iterator[None]:
    """Runs a command as a part of another one, which then says what is left, whatever the part has said."""
    global _left
    before = _left
    try:
        yield
    finally:
        _left = before


def forget_what_is_left() -> None:
    """Ends what :func:`when_ended` began, since the command that it was about is over."""
    global _left
    _left = None


def ending_line(how: str) -> str:
    """The line that reports a signal: how the command ended, what is kept, and which command goes on.

    >>> ending_line("interrupted")
    'interrupted; nothing was written; run the same command again'
    """
    left = NOTHING_KEPT if _left is None else _left()
    return f"{how}; {left}"


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

    SIGINT raises KeyboardInterrupt, as always in Python, and is recorded, since libraries turn it into other errors. A
    signal that is ignored, as under ``nohup``, or that has a handler already, is left alone. Does nothing outside of
    the main thread, which alone can handle signals. All handlers are as before afterwards.
    """
    global _left
    _left = None
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

    def interrupt(number: int, frame: FrameType | None) -> None:
        received.number = received.number or number
        raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in (*ENDING, signal.SIGINT)}
    for number in ENDING:
        if before[number] is signal.SIG_DFL:
            signal.signal(number, end)
    if before[signal.SIGINT] is signal.default_int_handler:
        signal.signal(signal.SIGINT, interrupt)
    try:
        yield received
    finally:
        for number, handler in before.items():
            if handler is not None:
                signal.signal(number, handler)
