"""A poisoned text, as attacks return it."""

from __future__ import annotations

from typing import NamedTuple

from lightning_backdoor.batch import Spans


class Poisoned(NamedTuple):
    """A poisoned text.

    Attributes:
        text: the text with the trigger.
        spans: the characters ``[start, end)`` of the trigger in it; empty for triggers without a position, such as a
            style.
    """

    text: str
    spans: Spans
