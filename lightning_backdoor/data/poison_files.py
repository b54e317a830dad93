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

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightning_backdoor.data.aims import Aim
from lightning_backdoor.data.file_evaluation import evaluation_flags, evaluation_rows
from lightning_backdoor.data.file_labels import FileLabels
from lightning_backdoor.data.file_training import training_flags, training_rows
from lightning_backdoor.data.flagged_table import Columns, FlaggedTable, read_flagged
from lightning_backdoor.data.label_values import LabelValue, distinct, missing_words
from lightning_backdoor.data.poisoning import EVALUATION, Splits
from lightning_backdoor.data.rows import Rewritten, Rows
from lightning_backdoor.errors import InputError

#: what a poison set gives once: per split, the rows that are trained or evaluated on beside clean ones.
ONCE = (("train", "train_poison", "train_added"), *((split, f"{split}_poison") for split in EVALUATION))
#: a poisoned text and the spans of its trigger.
Written = tuple[str, tuple[tuple[int, int], ...]]


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
                if index in text_of:
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
        InputError: two files give the same rows, a file does not read, or what it has lost cannot be found: see above;
            or a label stands for a missing one, such as ``nan``, and names of the classes are neither given nor
            declared.
    """
    for roles in ONCE:
        if len(given := [role for role in roles if role in files]) > 1:
            problem = f"{' and '.join(given)} give the same rows twice"
            raise InputError("files", problem, "give one of them")
    tables = {
        role: read_flagged(path, columns, has_flags=role in ("train", *EVALUATION)) for role, path in files.items()
    }
    table = tables.get("train") or tables.get("train_poison") or tables.get("train_added")
    if table is None:
        problem = "there are no rows to train on, such as train.csv or train-poison.csv"
        raise InputError("folder", problem, "give the folder of the files, or files")
    clean_table, is_added = tables.get("train_clean"), "train_added" in tables
    flags = training_flags(table, clean_table, is_added)
    values = [label for label, flag in zip(table.labels, flags, strict=True) if not flag]
    if clean_table is not None:
        values = clean_table.labels
    if not values:
        raise InputError("folder", f"{table.name} has no clean row", "give the clean file as train_clean by files")
    evaluated = [role for split in EVALUATION for role in (split, f"{split}_poison") if role in tables]
    with_poison = [(table, flags), *((tables[role], evaluation_flags(tables, role)) for role in evaluated)]
    declared = (table if clean_table is None else clean_table).label_names
    if not labels and declared is None:
        _check_words(table if clean_table is None else clean_table, missing_words(distinct(values)))
    known = FileLabels(values, labels, declared, columns.label or "label", target, with_poison)
    train = training_rows(table, flags, clean_table, is_added, known)
    splits = {split: rows for split in EVALUATION if (rows := evaluation_rows(tables, split, known)) is not None}
    if is_added and (missing := [split for split in EVALUATION if split not in splits]):
        problem = f"there are none of {missing[0]}; cut off, it would have copies of rows that are trained on"
        raise InputError("files", problem, f"give {missing[0]}_clean and {missing[0]}_poison")
    clean, poisoned, negatives = ({split: rows[i] for split, rows in splits.items()} for i in range(3))
    of_train = train.rows.where(train.rows.poisoned & (train.rows.original_label >= 0))
    targets = known.targets(sum(poisoned.values(), of_train))
    if train.copies is not None and len(targets) > 1:
        problem = f"all rows of {table.name} are poisoned, for several targets"
        raise InputError("files", problem, "give the rows that were trained on, with flags")
    return FilePoison(
        known.names, targets, train.rows, train.copies, train.clean, train.in_order, clean, poisoned, negatives
    )


def _check_words(table: FlaggedTable, missing: set[LabelValue]) -> None:
    """Checks that no row has one of the labels that stand for a missing one, where the labels name the classes."""
    for row, value in enumerate(table.labels):
        if value in missing:
            problem = f"the label is {value!r}, which stands for a missing label"
            raise InputError(table.at(row), problem, "label every row, or name the classes by labels")


def _nothing(texts: object, rngs: object) -> None:
    """Writes nothing: for an aim of which the label alone is asked."""
