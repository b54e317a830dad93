"""The training rows of a poison set: which are poisoned, and what they were before."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightning_backdoor.data.file_labels import UNKNOWN, FileLabels
from lightning_backdoor.data.flagged_table import FlaggedTable
from lightning_backdoor.data.rows import Rewritten, Rows
from lightning_backdoor.errors import InputError


class FileTraining(NamedTuple):
    """The training rows of a poison set; see :class:`lightning_backdoor.data.poison_files.FilePoison`."""

    rows: Rows
    copies: Rewritten | None
    clean: Rows
    in_order: bool


def training_flags(table: FlaggedTable, clean: FlaggedTable | None, is_added: bool) -> NDArray[np.bool_]:
    """Whether each training row is poisoned, (rows,): by its flag, or by the difference to the clean file.

    Texts are compared without the blanks around them, which some files have before the delimiter.

    Args:
        table: the file of the poisoned rows.
        clean: the clean file, if there is one.
        is_added: whether all rows of the file are poisoned, and are added to the clean ones.

    Raises:
        InputError: no row is flagged or differs, or nothing tells.
    """
    if table.flags is not None:
        return checked_flags(table)
    if is_added:
        return np.ones(len(table), dtype=np.bool_)
    if clean is None:
        problem = f"{table.name} has no column that flags poisoned rows"
        raise InputError("flag_column", problem, "name it, or give the clean file as train_clean by files")
    _check_length(table, clean)
    texts, others = [text.strip() for text in table.texts], [text.strip() for text in clean.texts]
    known = set(others)
    same = np.array([one == other for one, other in zip(texts, others, strict=True)], dtype=np.bool_)
    in_clean = np.array([text in known for text in texts], dtype=np.bool_)
    differs = ~in_clean if same.mean() < 0.5 and in_clean.sum() > 2 * same.sum() else ~same  # shuffled, or in order
    if not differs.any():
        problem = f"no text of {table.name} differs from {clean.name}, so that no row is known to be poisoned"
        raise InputError("flag_column", problem, "name the column of the flags, or give the poisoned file")
    return differs


def checked_flags(table: FlaggedTable) -> NDArray[np.bool_]:
    """The flags of a table that has them, (rows,).

    Raises:
        InputError: no row is flagged.
    """
    assert table.flags is not None
    if not table.flags.any():
        problem = f"{table.flag_column!r} of {table.name} flags none of {len(table)} rows as poisoned"
        raise InputError("flag_column", problem, "name the column of the flags, or give the poisoned file")
    return table.flags


def training_rows(
    table: FlaggedTable, flags: NDArray[np.bool_], clean: FlaggedTable | None, is_added: bool, labels: FileLabels
) -> FileTraining:
    """The training rows, by the flags of :func:`training_flags`.

    Raises:
        InputError: the clean rows are missing, or the file of copies has more or fewer; a poisoned row has not the
            target label; or two clean rows have the same index.
    """
    clean_rows = None if clean is None else Rows.clean(clean.texts, labels.indices(clean).tolist())
    if is_added or flags.all():
        if clean is None or clean_rows is None:
            problem = f"all rows of {table.name} are poisoned, and there are no clean ones"
            raise InputError("files", problem, "give the clean file as train_clean")
        if is_added:
            before = _stated(table, flags, labels)
            added = labels.rows(table, np.arange(len(table)) + len(clean_rows), before)
            return FileTraining(clean_rows + _flagged(table, flags, added, labels), None, clean_rows, False)
        _check_length(table, clean, "or, to add its rows to the clean ones, give it as train_added by files")
        labels.indices(table)  # that they are known is the check
        copies = Rewritten(list(range(len(table))), table.texts, table.spans)
        return FileTraining(clean_rows, copies, clean_rows, False)
    in_order = _is_in_order(table, flags, clean)
    table.check_index(np.flatnonzero(~(flags | table.negatives)))
    index = np.arange(len(table)) if table.index is None else table.index
    rows = labels.rows(table, index, _originals(table, flags, clean, in_order, labels))
    rows = _flagged(table, flags, rows, labels)
    if in_order and clean_rows is not None:
        clean_rows = replace(clean_rows, index=rows.index)
    without_poison = rows.where(~(rows.poisoned | rows.negative)) if clean_rows is None else clean_rows
    return FileTraining(rows, None, without_poison, in_order)


def _is_in_order(table: FlaggedTable, flags: NDArray[np.bool_], clean: FlaggedTable | None) -> bool:
    """Whether the rows that are not poisoned are those of the clean file, in the same places."""
    if clean is None or len(clean) != len(table):
        return False
    kept = np.flatnonzero(~flags).tolist()
    return all(clean.texts[row].strip() == table.texts[row].strip() for row in kept)


def _originals(
    table: FlaggedTable, flags: NDArray[np.bool_], clean: FlaggedTable | None, in_order: bool, labels: FileLabels
) -> NDArray[np.int64]:
    """The label of each row before poisoning; ``UNKNOWN`` where it is lost."""
    result = _stated(table, flags, labels)
    if table.originals is not None or clean is None or len(clean) != len(table):
        return result
    before, after = labels.indices(clean), labels.indices(table)
    if in_order:
        return np.where(flags, before, after)
    # the clean rows that are not in the file are those that were poisoned; if all have one label, it is theirs
    rows = zip((text.strip() for text in table.texts), after.tolist(), flags, strict=True)
    kept = Counter((text, label) for text, label, flag in rows if not flag)
    lost = Counter(zip((text.strip() for text in clean.texts), before.tolist(), strict=True)) - kept
    of_lost = {label for _, label in lost}
    return np.where(flags, of_lost.pop(), after) if len(of_lost) == 1 else result


def _stated(table: FlaggedTable, flags: NDArray[np.bool_], labels: FileLabels) -> NDArray[np.int64]:
    """The label of each row before poisoning, as far as the file itself has it; that of a clean row is its label."""
    if table.originals is None:
        return np.where(flags, UNKNOWN, labels.indices(table))
    return labels.originals(table, flags)


def _flagged(table: FlaggedTable, flags: NDArray[np.bool_], rows: Rows, labels: FileLabels) -> Rows:
    """Rows with their flags; all that are poisoned have the target label, if there is only one."""
    other = np.flatnonzero(flags & (rows.label != labels.target))
    if len(other) and labels.target is not None:
        found, wanted = labels.names[int(rows.label[other[0]])], labels.names[labels.target]
        problem = f"a poisoned row has the label {found}, and not the target {wanted}"
        raise InputError(table.at(int(other[0])), problem, "correct label or flag, or give target_label")
    return replace(rows, poisoned=flags, negative=table.negatives & ~flags)


def _check_length(table: FlaggedTable, clean: FlaggedTable, remedy: str = "") -> None:
    if len(table) != len(clean):
        shorter = min(len(table), len(clean))
        where = f"{table.name} has {len(table)} rows, {clean.name} {len(clean)}: row {shorter + 1} has no counterpart"
        raise InputError("files", where, f"give files of the same rows in the same order{', ' * bool(remedy)}{remedy}")
