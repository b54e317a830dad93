"""What a data module has read, poisoned and tokenised, kept as long as what determines it stays the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


class Kept:
    """One value per name, made again only if what determines it has changed; data modules may share one.

    >>> kept = Kept()
    >>> [kept.get("text", length, lambda: print("made") or "a" * length) for length in (2, 2, 3)]
    made
    made
    ['aa', 'aa', 'aaa']
    """

    def __init__(self) -> None:
        self._values: dict[str, tuple[object, Any]] = {}

    def get(self, name: str, decided_by: object, make: Callable[[], T]) -> T:
        """The value of a name.

        Args:
            name: its name.
            decided_by: all that determines the value, compared with ``==``.
            make: makes the value.
        """
        known = self._values.get(name)
        if known is None or known[0] != decided_by:
            known = self._values[name] = decided_by, make()
        value: T = known[1]
        return value
