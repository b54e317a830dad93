"""Which texts a computation looked up in caches and had to compute, and how long that took: for timing defenses."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

#: the blocks of :func:`recorded_lookups` that are running, outermost first.
_running: list[Lookups] = []


class Lookups:
    """The texts that a block of :func:`recorded_lookups` looked up, and the time that it took to compute some of them.

    A text counts as computed if the cache did not have it when the block looked it up for the first time. The time of
    computing is the time between a look-up that lacked texts and the storing of their results.

    >>> lookups = Lookups()
    >>> lookups.add(found=["a film"], missing=["a book", "a play", "a song"])
    >>> lookups.share
    0.75
    """

    def __init__(self) -> None:
        self._first_found: dict[object, bool] = {}
        self._computing = 0.0
        self._untimed = 0.0
        self._waits_since: float | None = None

    @property
    def share(self) -> float:
        """Texts that were computed, as a share of all texts that were looked up; 1 where none was looked up."""
        found = sum(self._first_found.values())
        return 1.0 - found / len(self._first_found) if self._first_found else 1.0

    def add(self, found: Iterable[object], missing: Iterable[object]) -> None:
        """Adds texts, or other keys, that a cache was asked for: those that it had, and those that it lacked."""
        lacks = False
        for keys, was_found in ((found, True), (missing, False)):
            for key in keys:
                self._first_found.setdefault(key, was_found)
                lacks = lacks or not was_found
        self._waits_since = time.perf_counter() if lacks else None

    def stored(self) -> None:
        """Adds the time since texts were found missing, or since the last results were stored."""
        if self._waits_since is not None:
            moment = time.perf_counter()
            self._computing += moment - self._waits_since
            self._waits_since = moment

    def leave_out(self, seconds: float) -> None:
        """Leaves out seconds that belong to no text; see :func:`untimed`."""
        self._untimed += seconds
        if self._waits_since is not None:
            self._waits_since += seconds

    def seconds_of_computed(self, seconds: float) -> float:
        """The part of a block's duration that belongs to computed texts: computing them, and their share of the rest.

        Args:
            seconds: duration of the block.
        """
        rest = max(0.0, seconds - self._computing - self._untimed)
        return self._computing + self.share * rest


@contextmanager
def recorded_lookups() -> Iterator[Lookups]:
    """Records the look-ups of all text caches within the block."""
    lookups = Lookups()
    _running.append(lookups)
    try:
        yield lookups
    finally:
        _running.remove(lookups)


@contextmanager
def untimed() -> Iterator[None]:
    """A block, such as the loading of a model at the first text, whose time belongs to no text."""
    started = time.perf_counter()
    try:
        yield
    finally:
        for lookups in _running:
            lookups.leave_out(time.perf_counter() - started)


def report_lookup(found: Iterable[object], missing: Iterable[object]) -> None:
    """Reports a look-up to the blocks that are running; called by caches."""
    found, missing = list(found), list(missing)
    for lookups in _running:
        lookups.add(found, missing)


def report_stored() -> None:
    """Reports that results were stored to the blocks that are running; called by caches."""
    for lookups in _running:
        lookups.stored()
