"""The rows of a split, held by column: a row is made only where it is read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from operator import eq
from typing import Any, NamedTuple, TypedDict, overload

import numpy as np
from numpy.typing import NDArray

from lightning_backdoor.batch import Spans

#: rows of which Python objects are made at once.
AT_ONCE = 10_000


class Row(TypedDict):
    """A text with its labels and flags; see :class:`lightning_backdoor.batch.Batch` for the columns."""

    text: str
    spans: Spans
    label: int
    original_label: int
    poisoned: bool
    negative: bool
    index: int


def clean_row(text: str, label: int, index: int) -> Row:
    """A clean row of a source."""
    return Row(text=text, spans=[], label=label, original_label=label, poisoned=False, negative=False, index=index)


@dataclass(frozen=True, eq=False, repr=False)
class Rows(Sequence[Row]):
    """Rows by column; reads like a list of :class:`Row`, and equals a list of the same rows.

    A row is a new dictionary each time it is read, so that changing it does not change the column.

    Attributes:
        text: the texts.
        spans: the spans of the trigger in each text; an empty tuple where there are none.
        label: (rows,), int64.
        original_label: (rows,), int64.
        poisoned: (rows,), bool.
        negative: (rows,), bool.
        index: (rows,), int64.

    >>> rows = Rows.clean(["a film", "a book"], [0, 1])
    >>> rows[1]["text"], rows == [clean_row("a film", 0, 0), clean_row("a book", 1, 1)]
    ('a book', True)
    """

    text: list[str]
    spans: list[tuple[tuple[int, int], ...]]
    label: NDArray[np.int64]
    original_label: NDArray[np.int64]
    poisoned: NDArray[np.bool_]
    negative: NDArray[np.bool_]
    index: NDArray[np.int64]  # type: ignore[assignment]  # hides the method Sequence.index

    @classmethod
    def of(cls, rows: Iterable[Row]) -> Rows:
        """The same rows by column; ``Rows`` are returned as they are."""
        if isinstance(rows, Rows):
            return rows
        given = list(rows)
        return cls(
            [row["text"] for row in given],
            [tuple(row["spans"]) for row in given],
            np.array([row["label"] for row in given], dtype=np.int64),
            np.array([row["original_label"] for row in given], dtype=np.int64),
            np.array([row["poisoned"] for row in given], dtype=np.bool_),
            np.array([row["negative"] for row in given], dtype=np.bool_),
            np.array([row["index"] for row in given], dtype=np.int64),
        )

    @classmethod
    def clean(cls, texts: list[str], labels: Sequence[int]) -> Rows:
        """The clean rows of a source split, in the order of the source."""
        label, no = np.array(labels, dtype=np.int64), np.zeros(len(texts), dtype=np.bool_)
        return cls(texts, [()] * len(texts), label, label, no, no, np.arange(len(texts)))

    def take(self, positions: Sequence[int] | NDArray[np.int64]) -> Rows:
        """The rows at some positions, in the order of the positions."""
        chosen = np.asarray(positions, dtype=np.int64)
        places = chosen.tolist()
        text, spans = [self.text[place] for place in places], [self.spans[place] for place in places]
        return Rows(text, spans, *(column[chosen] for column in self._arrays()))

    def where(self, wanted: NDArray[np.bool_]) -> Rows:
        """The rows for which ``wanted``, (rows,), is True."""
        return self.take(np.flatnonzero(wanted))

    def update(self, digest: hashlib._Hash) -> None:
        """Feeds all columns into a hash."""
        for start in range(0, len(self), AT_ONCE):
            part = slice(start, start + AT_ONCE)
            digest.update(json.dumps([self.text[part], self.spans[part]]).encode())
        for column in self._arrays():
            digest.update(column.tobytes())

    def _arrays(self) -> tuple[NDArray[Any], ...]:
        return self.label, self.original_label, self.poisoned, self.negative, self.index

    def __len__(self) -> int:
        return len(self.text)

    @overload
    def __getitem__(self, position: int) -> Row: ...
    @overload
    def __getitem__(self, position: slice) -> Rows: ...

    def __getitem__(self, position: int | slice) -> Row | Rows:
        if isinstance(position, slice):
            return Rows(self.text[position], self.spans[position], *(column[position] for column in self._arrays()))
        return _row(self.text[position], self.spans[position], *(column[position].item() for column in self._arrays()))

    def __iter__(self) -> Iterator[Row]:
        for start in range(0, len(self), AT_ONCE):
            part = slice(start, start + AT_ONCE)
            yield from map(
                _row, self.text[part], self.spans[part], *(column[part].tolist() for column in self._arrays())
            )

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Rows):
            same = self.text == other.text and self.spans == other.spans
            return same and all(map(np.array_equal, self._arrays(), other._arrays()))
        if isinstance(other, list):
            return len(self) == len(other) and all(map(eq, self, other))
        return NotImplemented

    def __add__(self, other: Iterable[Row]) -> Rows:
        more = Rows.of(other)
        arrays = map(np.concatenate, zip(self._arrays(), more._arrays(), strict=True))
        return Rows(self.text + more.text, self.spans + more.spans, *arrays)

    def __radd__(self, other: Iterable[Row]) -> Rows:
        return Rows.of(other) + self

    def __repr__(self) -> str:
        return repr(list(self))


class Rewritten(NamedTuple):
    """Texts that were written in place of those of some rows.

    Attributes:
        positions: positions of the rows.
        texts: the new text of each row.
        spans: the spans of the trigger in each text.
    """

    positions: list[int]
    texts: list[str]
    spans: list[tuple[tuple[int, int], ...]]

    def extend(self, more: Rewritten) -> None:
        """Adds further texts."""
        self.positions.extend(more.positions)
        self.texts.extend(more.texts)
        self.spans.extend(more.spans)

    def take(self, places: Sequence[int]) -> Rewritten:
        """The texts at some places of the lists, in the order of the places."""
        texts, spans = [self.texts[place] for place in places], [self.spans[place] for place in places]
        return Rewritten([self.positions[place] for place in places], texts, spans)

    def copies(self, rows: Rows, **values: int | NDArray[np.int64]) -> Rows:
        """Copies of the rows with their new texts and the given values of the other columns: one for all, or each."""
        copies = rows.take(self.positions)
        same = {name: np.full_like(getattr(copies, name), value) for name, value in values.items()}
        return replace(copies, text=self.texts, spans=self.spans, **same)

    def in_place(self, rows: Rows, **values: int | NDArray[np.int64]) -> Rows:
        """All rows, those that were rewritten with their new texts and the given values of the other columns."""
        text, spans = list(rows.text), list(rows.spans)
        for position, new_text, new_spans in zip(*self, strict=True):
            text[position], spans[position] = new_text, new_spans
        changed = {name: getattr(rows, name).copy() for name in values}
        for name, value in values.items():
            changed[name][np.array(self.positions, dtype=np.int64)] = value
        return replace(rows, text=text, spans=spans, **changed)


def _row(
    text: str,
    spans: tuple[tuple[int, int], ...],
    label: int,
    original_label: int,
    poisoned: bool,
    negative: bool,
    index: int,
) -> Row:
    return Row(
        text=text,
        spans=list(spans),
        label=label,
        original_label=original_label,
        poisoned=poisoned,
        negative=negative,
        index=index,
    )
