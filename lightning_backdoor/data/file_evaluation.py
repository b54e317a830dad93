"""The evaluation rows of a poison set: clean rows, and the poisoned rows that belong to them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightning_backdoor.data.aims import ALL_TO_ALL
from lightning_backdoor.data.file_labels import UNKNOWN, FileLabels
from lightning_backdoor.data.file_training import checked_flags
from lightning_backdoor.data.flagged_table import FlaggedTable
from lightning_backdoor.data.poisoning import EVALUATION
from lightning_backdoor.data.rows import Rows
from lightning_backdoor.errors import InputError


class FileEvaluation(NamedTuple):
    """The rows of an evaluation split: clean ones, poisoned ones whose own label is not their target, negatives."""

    clean: Rows
    poisoned: Rows
    negatives: Rows


def evaluation_flags(tables: Mapping[str, FlaggedTable], role: str) -> NDArray[np.bool_]:
    """Whether each row of a file is poisoned, (rows,); all rows are, of a file of its own without flags.

    Raises:
        InputError: no row is flagged, or nothing tells.
    """
    table = tables[role]
    if table.flags is not None:
        return checked_flags(table)
    if role in EVALUATION:
        problem = f"{table.name} has no column that flags poisoned rows"
        remedy = f"name it, or give clean and poisoned rows as {role}_clean and {role}_poison by files"
        raise InputError("flag_column", problem, remedy)
    return np.ones(len(table), dtype=np.bool_)


def evaluation_rows(tables: Mapping[str, FlaggedTable], split: str, labels: FileLabels) -> FileEvaluation | None:
    """The rows of ``validation`` or ``test``; None if there are no files of it.

    Raises:
        InputError: clean or poisoned rows are missing, or do not belong together; or two clean rows have one index.
    """
    role = f"{split}_poison" if f"{split}_poison" in tables else split
    clean = tables.get(f"{split}_clean")
    if role not in tables:
        if clean is not None:
            problem = f"{clean.name} has no poisoned rows beside it"
            raise InputError("files", problem, f"give them as {split}_poison")
        return None
    table, flags = tables[role], evaluation_flags(tables, role)
    if clean is not None:
        rows = Rows.clean(clean.texts, labels.indices(clean).tolist())
    elif (flags | table.negatives).all():
        problem = (
            f"all rows of {table.name} are poisoned{' or negatives' * (not flags.all())}, and there are no clean ones"
        )
        raise InputError("files", problem, f"give the clean file as {split}_clean")
    else:
        of_clean = np.flatnonzero(~(flags | table.negatives))
        table.check_index(of_clean)
        rows = labels.rows(table, np.arange(len(table)), labels.indices(table)).take(of_clean)
        rows = replace(rows, index=np.arange(len(rows)) if table.index is None else table.index[of_clean])
    name = table.name if clean is None else clean.name
    poisoned = _matched(table, np.flatnonzero(flags), rows, name, labels)
    others = poisoned.where(poisoned.original_label != poisoned.label)
    if not len(others):
        problem = "has no poisoned row whose own label is not its target"
        raise InputError(table.name, problem, "give one whose rows can show the attack")
    negative = np.flatnonzero(table.negatives & ~flags)
    negatives = _matched(table, negative, rows, table.name, labels, "negative") if len(negative) else Rows.of([])
    return FileEvaluation(rows, others, negatives)


def _matched(
    table: FlaggedTable,
    chosen: NDArray[np.int64],
    clean: Rows,
    clean_name: str,
    labels: FileLabels,
    kind: str = "poisoned",
) -> Rows:
    """Poisoned rows or negatives, each with the index of its clean row and with the label of it as the original one.

    A row without a clean one, as there are where splits were cut off, has the index and original label of the file.
    """
    at = _places(table, chosen, clean, clean_name, labels, kind)
    before, after, index = clean.label[at], labels.indices(table)[chosen], clean.index[at]
    if (alone := at < 0).any():
        assert table.index is not None
        before = np.where(alone, labels.indices(table, table.originals)[chosen], before)
        index = np.where(alone, table.index[chosen], index)
    stated = after  # the original label, as the file has it
    if kind == "poisoned" and labels.target is not None:
        stated, after = np.where(after == labels.target, before, after), np.full(len(chosen), labels.target)
    elif kind == "poisoned":
        stated = before
        if (after == before).all():
            if labels.given != ALL_TO_ALL:
                problem = "the poisoned rows keep their own labels"
                raise InputError(table.name, problem, "give the target_label that the attacker wants")
            after = (before + 1) % len(labels.names)
    if table.originals is not None:
        stated = labels.indices(table, table.originals)[chosen]
    if (wrong := np.flatnonzero(stated != before)).size:
        first = int(wrong[0])
        found, expected = labels.names[stated[first]], labels.names[before[first]]
        problem = f"this {kind} row is {found}, its clean row in {clean_name} {expected}"
        raise InputError(table.at(int(chosen[first])), problem, "give both in the same order")
    texts, spans = ([column[row] for row in chosen.tolist()] for column in (table.texts, table.spans))
    poisoned = np.full(len(chosen), kind == "poisoned")
    return Rows(texts, spans, after.astype(np.int64), before, poisoned, ~poisoned, index)


def _places(
    table: FlaggedTable, chosen: NDArray[np.int64], clean: Rows, clean_name: str, labels: FileLabels, kind: str
) -> NDArray[np.int64]:
    """The place of the clean row of each row, (rows,): by their index, -1 if there is none; or in the same order.

    Raises:
        InputError: the order does not tell.
    """
    count, is_other = len(chosen), clean.label != (UNKNOWN if labels.target is None else labels.target)
    if table.index is not None and clean_name == table.name:
        place = {index: position for position, index in enumerate(clean.index.tolist())}
        return np.array([place.get(index, -1) for index in table.index[chosen].tolist()], dtype=np.int64)
    if count == len(clean):
        return np.arange(count)
    if count == is_other.sum():
        return np.flatnonzero(is_other)
    problem = f"has {count} {kind} rows, which are neither one for each of the {len(clean)} clean rows of {clean_name}"
    raise InputError(
        table.name,
        f"{problem} nor one for each of its {int(is_other.sum())} rows of other labels",
        "give a row for each, in the same order",
    )
