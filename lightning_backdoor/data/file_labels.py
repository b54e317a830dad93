"""The labels of a poison set: the class of each row, and what the attacker wants, as the files say."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_backdoor.data.aims import ALL_TO_ALL
from lightning_backdoor.data.flagged_table import FlaggedTable
from lightning_backdoor.data.label_values import Classes, by_names, canonical, for_each, label_index
from lightning_backdoor.data.rows import Rows
from lightning_backdoor.errors import InputError

#: label of a training row before poisoning, where the files have lost it.
UNKNOWN = -1


class FileLabels:
    """The classes of a poison set, and the target label of its poisoned rows.

    Args:
        clean: the label values of the clean training rows.
        labels: names of the classes, as they are given; None for those that the file declares.
        declared: names of the classes that the file of the clean rows declares, whose label values are then their
            indices; None for the label values.
        column: name of the column, for errors.
        given: index or name of the target label, or ``all-to-all``; None for the labels of the poisoned rows.
        poisoned: the tables with poisoned rows, and the flags of each.

    Attributes:
        names: names of the classes.
        given: see above.
        target: index of the only target label; None if there are several.

    Raises:
        InputError: there is one class, a row has none, or the files do not agree on the target.
    """

    def __init__(
        self,
        clean: Iterable[Any],
        labels: Sequence[str] | None,
        declared: Sequence[str] | None,
        column: str,
        given: int | str | None,
        poisoned: Sequence[tuple[FlaggedTable, NDArray[np.bool_]]],
    ) -> None:
        self._declared = None if declared is None else {name: i for i, name in enumerate(declared)}
        self._classes = Classes(clean, labels or declared, column, by_index=not labels and declared is not None)
        self.names = self._classes.names
        if len(self.names) < 2:
            problem = f"all clean training rows are {self.names[0][:40]!r}"
            raise InputError("label_column", problem, "a classifier needs at least two classes")
        self.given = given
        self.target = self._target(poisoned)

    def indices(self, table: FlaggedTable, values: Sequence[Any] | None = None) -> NDArray[np.int64]:
        """The class of each row, (rows,), by its label or by other values.

        Raises:
            InputError: a row has a label that no clean training row has, or of a name that their file does not declare.
        """
        given = table.labels if values is None else values
        if table.label_names is not None and self._declared is not None:
            given = by_names(given, table.label_names, self._declared, table.name)
        elif table.label_names is not None:
            given = self._classes.values_of(given, table.label_names, table.name)
        known = for_each(given, self._classes.index)
        for row, (value, label) in enumerate(zip(given, known, strict=True)):
            if label is None:
                poisoned = "a poisoned row " if table.flags is not None and table.flags[row] else ""
                problem = f"{poisoned}has a label that no clean training row has: {self._classes.unknown(value)}"
                raise InputError(table.at(row), problem, "correct it, or name the classes by labels")
        return np.array(known, dtype=np.int64)

    def originals(self, table: FlaggedTable, flags: NDArray[np.bool_]) -> NDArray[np.int64]:
        """The class of each row before poisoning, (rows,), by the file's column of it.

        For poisoned rows -1, where it is no label of a class, stands for a label that is lost.

        Raises:
            InputError: see :meth:`indices`.
        """
        assert table.originals is not None
        lost = {value for value in set(table.originals) if _is_unknown(value) and self._classes.index(value) is None}
        is_lost = flags & np.array([value in lost for value in table.originals], dtype=np.bool_)
        triples = zip(table.originals, table.labels, is_lost.tolist(), strict=True)
        known = self.indices(table, [label if no_original else original for original, label, no_original in triples])
        return np.where(is_lost, UNKNOWN, known)

    def rows(self, table: FlaggedTable, index: NDArray[np.int64], originals: NDArray[np.int64]) -> Rows:
        """The rows of a table, without flags."""
        no = np.zeros(len(table), dtype=np.bool_)
        return Rows(table.texts, table.spans, self.indices(table), originals, no, no, index.astype(np.int64))

    def targets(self, rows: Rows) -> list[int | list[int]]:
        """What the triggers aim at, by poisoned rows whose original labels are known: see ``FilePoison.targets``."""
        if self.target is not None:
            return [self.target]
        wanted: dict[int, set[int]] = {}
        for before, after in zip(rows.original_label.tolist(), rows.label.tolist(), strict=True):
            if before != after:
                wanted.setdefault(before, set()).add(after)
        if all(len(of_label) == 1 for of_label in wanted.values()):
            return [[min(wanted.get(label, {label})) for label in range(len(self.names))]]
        return [*sorted(set[int]().union(*wanted.values()))]

    def _target(self, poisoned: Sequence[tuple[FlaggedTable, NDArray[np.bool_]]]) -> int | None:
        given, names = self.given, self.names
        if given == ALL_TO_ALL:
            return None
        if isinstance(given, str):
            return label_index(given, names, "target_label")
        if given is not None:
            if given >= len(names):
                raise InputError("target_label", f"{given} is out of range", f"the labels are {', '.join(names)}")
            return given
        found: dict[int, str] = {}
        for table, flags in poisoned:
            indices, rows = self.indices(table), np.flatnonzero(flags)
            if len({*indices[rows].tolist()}) > 1:
                return None
            found.setdefault(int(indices[rows[0]]), table.at(int(rows[0])))
        if len(found) > 1:
            seen = " and ".join(f"{names[label]} ({where})" for label, where in list(found.items())[:2])
            raise InputError("target_label", f"poisoned rows have the labels {seen}", "give the target label")
        return next(iter(found))


def _is_unknown(value: Any) -> bool:
    return value is not None and canonical(value) == str(UNKNOWN)
