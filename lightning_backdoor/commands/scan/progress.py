"""Signs of life: a bar on a terminal, and without one a line per minute with the time left."""

from __future__ import annotations

import sys
import time
from datetime import timedelta
from types import TracebackType
from typing import Any

#: seconds between two lines where there is no terminal.
INTERVAL = 60.0


class Progress:
    """The progress of a part of a scan, on standard error.

    Args:
        what: what is done, such as ``scoring``.
        total: number of texts; None if it is not known.
        done: number of texts that were done before.
        shown: whether to show anything; False in all processes but the first.
    """

    def __init__(self, what: str, total: int | None, done: int = 0, shown: bool = True) -> None:
        self.what, self.total, self.shown = what, total, shown
        self._first = self.done = done
        self._begun = self._said = time.monotonic()
        self._bar: Any = None

    def __enter__(self) -> Progress:
        if self.shown and sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(
                desc=self.what, total=self.total, initial=self._first, unit="text", file=sys.stderr, leave=False
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def reach(self, done: int) -> None:
        """Says that this many texts are done, unless more are known to be."""
        if done <= self.done:
            return
        if self._bar is not None:
            self._bar.update(done - self.done)
        self.done = done
        now = time.monotonic()
        if self.shown and self._bar is None and now - self._said >= INTERVAL:
            self._said = now
            sys.stderr.write(f"{self.line(now - self._begun)}\n")
            sys.stderr.flush()

    def advance(self, texts: int) -> None:
        """Says that some more texts are done."""
        self.reach(self.done + texts)

    def line(self, seconds: float) -> str:
        """The line after a number of seconds.

        >>> progress = Progress("scoring", total=400, done=100)
        >>> progress.done = 200
        >>> progress.line(60.0)
        'scoring: 200 of 400 texts, 1.7 per second, 0:02:00 left'
        """
        rate = (self.done - self._first) / max(seconds, 1e-9)
        if self.total is None:
            return f"{self.what}: {self.done} texts, {rate:.1f} per second"
        left = timedelta(seconds=round(max(0, self.total - self.done) / rate)) if rate else "unknown time"
        return f"{self.what}: {self.done} of {self.total} texts, {rate:.1f} per second, {left} left"
