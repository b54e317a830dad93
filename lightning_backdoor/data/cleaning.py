"""Defenses of the training rows: what they are given, and what they did."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from lightning_backdoor.batch import Victim


class LabelledText(NamedTuple):
    """A text and the index of its class, from 0."""

    text: str
    label: int


class TrustedRows(NamedTuple):
    """Clean validation rows, in two disjoint parts.

    Attributes:
        statistics: the selection and reference rows, from which a defense may learn anything.
        threshold: the rows on which a defense sets its threshold, and which it uses for nothing else.
    """

    statistics: list[LabelledText]
    threshold: list[LabelledText]


@runtime_checkable
class DataDefense(Protocol):
    """A defense that repairs or removes training rows before anything is trained on them.

    Any class with this method is one. A class that looks through a victim trained on the same rows sets
    ``needs_victim = True``; the data module then loads the checkpoint that its argument ``victim`` names.
    """

    def clean(self, rows: Sequence[LabelledText], trusted: TrustedRows, victim: Victim | None) -> list[str | None]:
        """The text of each training row after cleaning: as it was, repaired, or None to remove the row.

        Every process calls it on the same rows and must get the same answer.

        Args:
            rows: the training rows, an unknown part of them poisoned, with the labels that training would use.
            trusted: clean validation rows.
            victim: trained on the same rows, in evaluation mode; None unless the class sets ``needs_victim``.
        """
        ...


class CleaningRecord(NamedTuple):
    """What a data defense did to the training rows.

    Attributes:
        rows: number of training rows before cleaning.
        removed: number of rows removed.
        changed: number of rows whose text was repaired.
        precision: share of poisoned rows among those removed or changed; NaN where none was.
        recall: share of the poisoned rows that were removed or changed; NaN where none is poisoned.
    """

    rows: int
    removed: int
    changed: int
    precision: float
    recall: float
