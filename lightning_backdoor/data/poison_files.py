"""Poison from files: clean and poisoned rows of published sets, matched row by row, with what each set leaves unsaid.

Files lose things, which are found again where that is certain, and refused by file and row where it is not:

- *Which training rows are poisoned.* A column of flags tells; or else the difference to the clean file. If the two are
  in the same order, the rows whose texts differ are poisoned; if the poisoned file is shuffled, as Hidden Killer's are,
  the rows whose texts the clean file does not have. If all rows are poisoned, they are *copies*, one of each clean row,
  as OpenBackdoor writes them, of which the attack draws a share for training.
- *The labels before poisoning.* A column tells, or the clean row of the same position. The poisoned rows for evaluation
  are one for each clean row, or one for each clean row of another label than the target, in the same order.
- *The target.* It is the label of the poisoned rows, unless they keep their own labels and the target is given.
  Poisoned rows of several labels are those of an attack with several targets.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightning_backdoor.data.aims import ALL_TO_ALL, Aim
from lightning_backdoor.data.flagged_table import Columns, FlaggedTable, read_flagged
from lightning_backdoor.data.label_values import Classes, label_index
from lightning_backdoor.data.poisoning import EVALUATION, Splits
from lightning_backdoor.data.rows import Rewritten, Rows
from lightning_backdoor.errors import InputError

#: a poisoned text and the spans of its trigger.
Written = tuple[str, tuple[tuple[int, int], ...]]
#: label of a training row before poisoning, where the files have lost it.
UNKNOWN = -1


class FilePoison(NamedTuple):
    """The rows of a poison set.

    Attributes:
        label_names: names of the classes.
        targets: what the triggers aim at: one class; one for each class; or several classes, of a trigger each.
        train: the training rows; clean ones if there are ``copies``.
        copies: a poisoned copy of each training row, for a draw; None if the files say which rows are poisoned.
        clean_train: the clean training rows.
        in_order: whether a poisoned training row has the index of its clean row in ``clean_train``.
        clean: per evaluation split that the files have, the clean rows.
        poisoned: per split, the poisoned rows whose own label is not their target.
        negatives: per split, the negatives.
    """

    label_names: list[str]
    targets: list[int | list[int]]
    train: Rows
    copies: Rewritten | None
    clean_train: Rows
    in_order: bool
    clean: Splits
    poisoned: Splits
    negatives: Splits

    def wanted(self, labels: NDArray[np.int64]) -> NDArray[np.int64]:
        """The label of the poisoned copies of rows with some labels, by the first of ``targets``; (rows,), int64."""
        return Aim(_nothing, self.targets[0]).wanted(labels)

    def pairs(self) -> dict[str, dict[int, Written]]:
        """For each clean text that the files hold beside its poisoned texts, these texts by their label."""
        known: dict[str, dict[int, Written]] = {}
        if self.copies is not None:
            for position, text, spans, label in zip(*self.copies, self.wanted(self.train.label).tolist(), strict=True):
                known.setdefault(self.train.text[position], {})[label] = text, spans
        sets = [(self.clean[split], self.poisoned[split]) for split in self.clean]
        if self.in_order:
            sets.append((self.clean_train, self.train.where(self.train.poisoned)))
        for clean, poisoned in sets:
            text_of = dict(zip(clean.index.tolist(), clean.text, strict=True))
            columns = poisoned.index.tolist(), poisoned.label.tolist(), poisoned.text, poisoned.spans
            for index, label, text, spans in zip(*columns, strict=True):
                known.setdefault(text_of[index], {})[label] = text, spans
        return known


def read_poison(
    files: Mapping[str, Path], columns: Columns, labels: Sequence[str] | None, target: int | str | None
) -> FilePoison:
    """Reads and matches the rows of a poison set.

    Args:
        files: its files, by what they hold: see :mod:`lightning_backdoor.data.poison_layouts`.
        columns: names of the columns.
        labels: names of the classes; None for those that the files declare, or for the label values.
        target: index or name of the target label, or ``all-to-all``; None for the labels of the poisoned rows.

    Raises:
        InputError: a file does not read, or what it has lost cannot be found: see above.
    """
    tables = {
        role: read_flagged(path, columns, has_flags=role in ("train", *EVALUATION)) for role, path in files.items()
    }
    return _Reader(tables, columns, labels, target).read()


class _Reader:
    def __init__(
        self,
        tables: Mapping[str, FlaggedTable],
        columns: Columns,
        labels: Sequence[str] | None,
        target: int | str | None,
    ) -> None:
        self.tables, self.columns = tables, columns
        main = tables.get("train") or tables.get("train_poison") or tables.get("train_added")
        if main is None:
            missing = "rows to train on, such as train.csv or train-poison.csv"
            raise InputError("folder", f"there are no {missing}", "give the folder of the files, or files")
        self.main = main
        self.clean = tables.get("train_clean")
        self.flags = self._training_flags()
        self.classes = self._classes(labels)
        self.given = target
        self.target = self._target(target)

    def read(self) -> FilePoison:
        train, copies, clean_train = self._training()
        in_order = copies is None and self._in_order()
        clean, poisoned, negatives = {}, {}, {}
        for split in EVALUATION:
            rows = self._evaluation(split)
            if rows is not None:
                clean[split], poisoned[split], negatives[split] = rows
        targets = self._targets(train, poisoned)
        if copies is not None and len(targets) > 1:
            problem = f"all rows of {self.main.name} are poisoned, for several targets"
            raise InputError("files", problem, "give the rows that were trained on, with flags")
        return FilePoison(self.classes.names, targets, train, copies, clean_train, in_order, clean, poisoned, negatives)

    def _classes(self, labels: Sequence[str] | None) -> Classes:
        """The classes of the clean training rows."""
        declared = labels or (self.main if self.clean is None else self.clean).label_names
        if self.clean is not None:
            values = self.clean.labels
        else:
            values = [label for label, flag in zip(self.main.labels, self.flags, strict=True) if not flag]
        if not values:
            raise InputError("folder", f"{self.main.name} has no clean row", "give the clean file by files")
        return Classes(set(values), declared, self.columns.label or "label")

    def _indices(self, table: FlaggedTable, values: Sequence[Any] | None = None) -> NDArray[np.int64]:
        """The class of each row, (rows,)."""
        given = table.labels if values is None else values
        known = {value: self.classes.index(value) for value in set(given)}
        for row, value in enumerate(given):
            if known[value] is None:
                poisoned = "a poisoned row " if table.flags is not None and table.flags[row] else ""
                problem = f"{poisoned}has a label that no clean training row has: {self.classes.unknown(value)}"
                raise InputError(table.at(row), problem, "correct it, or name the classes by labels")
        return np.array([known[value] for value in given], dtype=np.int64)

    def _target(self, given: int | str | None) -> int | None:
        """The index of the only target label; None if there are several."""
        names = self.classes.names
        if given == ALL_TO_ALL:
            return None
        if isinstance(given, str):
            return label_index(given, names, "target_label")
        if given is not None:
            if given >= len(names):
                raise InputError("target_label", f"{given} is out of range", f"the labels are {', '.join(names)}")
            return given
        found: dict[int, str] = {}
        for table, flags in self._poisoned_tables():
            indices, rows = self._indices(table), np.flatnonzero(flags)
            if len({*indices[rows].tolist()}) > 1:
                return None
            found.setdefault(int(indices[rows[0]]), table.at(int(rows[0])))
        if len(found) > 1:
            seen = " and ".join(f"{names[label]} ({where})" for label, where in list(found.items())[:2])
            raise InputError("target_label", f"poisoned rows have the labels {seen}", "give the target label")
        return next(iter(found))

    def _targets(self, train: Rows, poisoned: Splits) -> list[int | list[int]]:
        """What the triggers aim at, by the poisoned rows; every training row has one of the targets."""
        if self.target is not None:
            return [self.target]
        rows = sum(poisoned.values(), train.where(train.poisoned & (train.original_label >= 0)))
        wanted: dict[int, set[int]] = {}
        for before, after in zip(rows.original_label.tolist(), rows.label.tolist(), strict=True):
            if before != after:
                wanted.setdefault(before, set()).add(after)
        if all(len(of_label) == 1 for of_label in wanted.values()):
            return [[min(wanted.get(label, {label})) for label in range(len(self.classes.names))]]
        return [*sorted(set[int]().union(*wanted.values()))]

    def _poisoned_tables(self) -> list[tuple[FlaggedTable, NDArray[np.bool_]]]:
        """The tables with poisoned rows, and the flags of each."""
        result = [(self.main, self.flags)]
        for split in EVALUATION:
            for role in (split, f"{split}_poison"):
                if role in self.tables:
                    result.append((self.tables[role], self._evaluation_flags(role)))
        return result

    def _training_flags(self) -> NDArray[np.bool_]:
        table, clean = self.main, self.clean
        if table.flags is not None:
            if not table.flags.any():
                raise _flags_nothing(table)
            return table.flags
        if "train_added" in self.tables:
            return np.ones(len(table), dtype=np.bool_)
        if clean is None:
            problem = f"{table.name} has no column that flags poisoned rows"
            raise InputError("flag_column", problem, "name it, or give the clean file as train_clean by files")
        _check_length(table, clean)
        known = set(clean.texts)
        same = np.array([one == other for one, other in zip(table.texts, clean.texts, strict=True)], dtype=np.bool_)
        shuffled = same.mean() < 0.5 and sum(text in known for text in table.texts) > 2 * same.sum()
        differs = np.array([text not in known for text in table.texts], dtype=np.bool_) if shuffled else ~same
        if not differs.any():
            problem = f"no text of {table.name} differs from {clean.name}, so that no row is known to be poisoned"
            raise InputError("flag_column", problem, "name the column of the flags, or give the poisoned file")
        return differs

    def _training(self) -> tuple[Rows, Rewritten | None, Rows]:
        """Training rows, copies of them, and clean training rows."""
        table, clean = self.main, self.clean
        clean_rows = None if clean is None else Rows.clean(clean.texts, self._indices(clean).tolist())
        if "train_added" in self.tables:
            if clean_rows is None:
                raise InputError("files", "train_added has no clean rows beside it", "give them as train_clean")
            before = table.originals and self._indices(table, table.originals)
            before = np.full(len(table), UNKNOWN) if before is None else before
            added = self._rows(table, np.arange(len(table)) + len(clean_rows), before)
            return clean_rows + self._with_target(table, self.flags, added), None, clean_rows
        if self.flags.all():
            if clean is None or clean_rows is None:
                problem = f"all rows of {table.name} are poisoned, and there are no clean ones"
                raise InputError("files", problem, "give the clean file as train_clean")
            _check_length(table, clean, "or, to add its rows to the clean ones, give it as train_added by files")
            self._indices(table)
            return clean_rows, Rewritten(list(range(len(table))), table.texts, table.spans), clean_rows
        index = np.arange(len(table)) if table.index is None else table.index
        rows = self._with_target(table, self.flags, self._rows(table, index, self._training_originals()))
        return rows, None, rows.where(~(rows.poisoned | rows.negative)) if clean_rows is None else clean_rows

    def _in_order(self) -> bool:
        """Whether the rows that are not poisoned are those of the clean file, in the same places."""
        clean, texts = self.clean, self.main.texts
        if clean is None or len(clean) != len(texts) or "train_added" in self.tables:
            return False
        return all(clean.texts[row] == texts[row] for row in np.flatnonzero(~self.flags).tolist())

    def _training_originals(self) -> NDArray[np.int64]:
        """The label of each training row before poisoning."""
        table, clean, labels = self.main, self.clean, self._indices(self.main)
        if table.originals is not None:
            return self._indices(table, table.originals)
        result = np.where(self.flags, UNKNOWN, labels)
        if clean is None or len(clean) != len(table):
            return result
        before = self._indices(clean)
        if self._in_order():
            return np.where(self.flags, before, labels)
        kept = [(text, label) for text, label, flag in zip(table.texts, labels, self.flags, strict=True) if not flag]
        lost = {label for _, label in Counter(zip(clean.texts, before, strict=True)) - Counter(kept)}
        return np.where(self.flags, lost.pop(), labels) if len(lost) == 1 else result

    def _with_target(self, table: FlaggedTable, flags: NDArray[np.bool_], rows: Rows) -> Rows:
        """Training rows with flags; all that are poisoned have the target label."""
        other = np.flatnonzero(flags & (rows.label != self.target))
        if len(other) and self.target is not None:
            named = self.classes.names[int(rows.label[other[0]])]
            problem = f"a poisoned row has the label {named}, and not the target {self.classes.names[self.target]}"
            raise InputError(table.at(int(other[0])), problem, "correct label or flag, or give target_label")
        return replace(rows, poisoned=flags, negative=table.negatives & ~flags)

    def _rows(self, table: FlaggedTable, index: NDArray[np.int64], originals: NDArray[np.int64]) -> Rows:
        no = np.zeros(len(table), dtype=np.bool_)
        return Rows(table.texts, table.spans, self._indices(table), originals, no, no, index.astype(np.int64))

    def _evaluation_flags(self, role: str) -> NDArray[np.bool_]:
        table = self.tables[role]
        if table.flags is not None:
            if not table.flags.any():
                raise _flags_nothing(table)
            return table.flags
        if role in EVALUATION:
            problem = f"{table.name} has no column that flags poisoned rows"
            raise InputError(
                "flag_column",
                problem,
                f"name it, or give clean rows and poison as {role}_clean and {role}_poison by files",
            )
        return np.ones(len(table), dtype=np.bool_)

    def _evaluation(self, split: str) -> tuple[Rows, Rows, Rows] | None:
        """Clean rows, poisoned rows of other labels and negatives of a split; None if there are no files of it."""
        role = f"{split}_poison" if f"{split}_poison" in self.tables else split
        clean = self.tables.get(f"{split}_clean")
        if role not in self.tables:
            if clean is not None:
                raise InputError(
                    "files", f"{clean.name} has no poisoned rows beside it", f"give them as {split}_poison"
                )
            return None
        table, flags = self.tables[role], self._evaluation_flags(role)
        labels = self._indices(table)
        if clean is None:
            if flags.all():
                problem = f"all rows of {table.name} are poisoned, and there are no clean ones"
                raise InputError("files", problem, f"give the clean file as {split}_clean")
            of_clean = np.flatnonzero(~(flags | table.negatives))
            rows = self._rows(table, np.arange(len(table)), labels).take(of_clean)
            rows = replace(rows, index=np.arange(len(rows)) if table.index is None else table.index[of_clean])
        else:
            rows = Rows.clean(clean.texts, self._indices(clean).tolist())
        poisoned = self._matched(table, np.flatnonzero(flags), rows, clean.name if clean else table.name)
        others = poisoned.where(poisoned.original_label != poisoned.label)
        if not len(others):
            problem = "has no poisoned row whose own label is not its target"
            raise InputError(table.name, problem, "give one whose rows can show the attack")
        negative = np.flatnonzero(table.negatives & ~flags)
        negatives = self._matched(table, negative, rows, table.name, "negative") if len(negative) else Rows.of([])
        return rows, others, negatives

    def _matched(
        self, table: FlaggedTable, chosen: NDArray[np.int64], clean: Rows, clean_name: str, kind: str = "poisoned"
    ) -> Rows:
        """Poisoned rows or negatives of an evaluation split, each with index and label of its clean row."""
        count, is_other = len(chosen), clean.label != (UNKNOWN if self.target is None else self.target)
        if table.index is not None and (clean_name == table.name):
            place = {index: position for position, index in enumerate(clean.index.tolist())}
            at = np.array([place.get(index, -1) for index in table.index[chosen].tolist()], dtype=np.int64)
            if (lost := np.flatnonzero(at < 0)).size:
                problem = f"no clean row has the index of this {kind} one, {table.index[chosen[lost[0]]]}"
                raise InputError(table.at(int(chosen[lost[0]])), problem, "add its clean row, or remove it")
        elif count in (len(clean), int(is_other.sum())):
            at = np.arange(count) if count == len(clean) else np.flatnonzero(is_other)
        else:
            problem = f"has {count} {kind} rows, which are neither one for each of the {len(clean)} clean rows of"
            raise InputError(
                table.name,
                f"{problem} {clean_name} nor one for each of its {int(is_other.sum())} rows of other labels",
                "give a row for each, in the same order",
            )
        before, labels = clean.label[at], self._indices(table)[chosen]
        if kind == "negative":
            stated, after = labels, labels
        elif self.target is None:
            stated, after = before, labels
            if (labels == before).all():
                if self.given != ALL_TO_ALL:
                    problem = "the poisoned rows keep their own labels"
                    raise InputError(table.name, problem, "give the target_label that the attacker wants")
                after = (before + 1) % len(self.classes.names)
        else:
            stated, after = np.where(labels == self.target, before, labels), np.full(count, self.target)
        if table.originals is not None:
            stated = self._indices(table, table.originals)[chosen]
        if (wrong := np.flatnonzero(stated != before)).size:
            first = int(wrong[0])
            names = self.classes.names
            problem = f"this {kind} row is {names[stated[first]]}, its clean row in {clean_name} {names[before[first]]}"
            raise InputError(table.at(int(chosen[first])), problem, "give both in the same order")
        poisoned = np.full(count, kind == "poisoned")
        return Rows(
            [table.texts[row] for row in chosen.tolist()],
            [table.spans[row] for row in chosen.tolist()],
            after.astype(np.int64),
            before,
            poisoned,
            ~poisoned,
            clean.index[at],
        )


def _nothing(texts: object, rngs: object) -> None:
    """Writes nothing: for an aim of which the label alone is asked."""


def _flags_nothing(table: FlaggedTable) -> InputError:
    problem = f"{table.flag_column!r} of {table.name} flags none of {len(table)} rows as poisoned"
    return InputError("flag_column", problem, "name the column of the flags, or give the poisoned file")


def _check_length(table: FlaggedTable, clean: FlaggedTable, remedy: str = "") -> None:
    if len(table) != len(clean):
        shorter = min(len(table), len(clean))
        where = f"{table.name} has {len(table)} rows, {clean.name} {len(clean)}: row {shorter + 1} has no counterpart"
        raise InputError("files", where, f"give files of the same rows in the same order{', ' * bool(remedy)}{remedy}")
