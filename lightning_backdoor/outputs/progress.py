"""The progress of long computations on standard error: a bar on a terminal, and without one a line per minute."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from lightning_utilities.core.rank_zero import rank_zero_only

Item = TypeVar("Item")

#: seconds between two lines where there is no terminal.
LINE_SECONDS = 60.0
#: seconds after which a bar appears, so that what is soon done shows none.
BAR_DELAY = 3.0


@contextmanager
def progress(title: str, total: int | None, unit: str, done: int = 0) -> Iterator[Callable[[int], object]]:
    """Shows the progress of the block's work; of several processes, only the first one shows it.

    Args:
        title: what is done, such as ``calibrating onion``.
        total: number of units of the whole work; None if it is not known.
        unit: what is counted, in the plural.
        done: number of units that were done earlier.

    Yields:
        A function that takes the number of units that have been done since its last call.
    """
    if getattr(rank_zero_only, "rank", 0):
        yield lambda count: None
    elif sys.stderr.isatty():
        from tqdm import tqdm

        with tqdm(
            total=total, initial=done, desc=title, unit=f" {unit}", file=sys.stderr, leave=False, delay=BAR_DELAY
        ) as bar:
            yield bar.update
    else:
        lines = ProgressLines(title, total, unit, done)
        yield lines.advance
        lines.finish()


def tracked(items: Iterable[Item], title: str, unit: str, total: int | None = None) -> Iterator[Item]:
    """Iterates over items, and shows how many are done.

    Args:
        items: any iterable.
        title: what is done.
        unit: what the items are, in the plural.
        total: number of items; by default their length, where they have one.
    """
    if total is None and isinstance(items, Collection):
        total = len(items)
    with progress(title, total, unit) as advance:
        for item in items:
            yield item
            advance(1)


class ProgressLines:
    """Writes at most one line a minute about a computation, and one at its end if it took longer than a minute.

    Args:
        title: what is done.
        total: number of units; None if it is not known.
        unit: what is counted, in the plural.
        done: number of units that were done earlier.
    """

    def __init__(self, title: str, total: int | None, unit: str, done: int = 0) -> None:
        self.title, self.total, self.unit = title, total, unit
        self.done = self.before = done
        self.started = self.written = time.monotonic()

    def advance(self, count: int) -> None:
        """Adds units that have been done; writes a line if the last one is a minute old."""
        self.done += count
        now = time.monotonic()
        if now - self.written < LINE_SECONDS:
            return
        self.written = now
        of_total = "" if self.total is None else f" of {self.total}"
        left = ""
        if self.total is not None and self.done > self.before:
            per_unit = (now - self.started) / (self.done - self.before)
            left = f", about {duration(per_unit * max(0, self.total - self.done))} left"
        _write(f"{self.title}: {self.done}{of_total} {self.unit}{left}")

    def finish(self) -> None:
        """Writes a last line if there was another one."""
        if self.written > self.started:
            _write(f"{self.title}: done in {duration(time.monotonic() - self.started)}")


def duration(seconds: float) -> str:
    """A duration in words.

    >>> [duration(seconds) for seconds in (0.42, 75, 7300)]
    ['0.4 s', '1 min 15 s', '2 h 1 min']
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _write(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
