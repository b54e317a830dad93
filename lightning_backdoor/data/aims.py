"""The aims of an attack: its triggers, each with the label that the poisoned copy of a row gets."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from lightning_backdoor.batch import Spans
from lightning_backdoor.data.rows import Rows


class PoisonedText(Protocol):
    """A poisoned text and the spans of its trigger, as an attack returns them."""

    @property
    def text(self) -> str: ...
    @property
    def spans(self) -> Spans: ...


#: the value of ``target_label`` with which the poisoned copy of a row gets the label after the row's own.
ALL_TO_ALL = "all-to-all"

#: a method of an attack that writes texts, such as ``poison_texts``.
Writer = Callable[[Sequence[str], Sequence[random.Random]], Sequence[PoisonedText | None] | None]


class Aim(NamedTuple):
    """A trigger, and the label that the poisoned copy of a row gets.

    Attributes:
        write: writes the trigger into texts, as ``poison_texts`` does.
        target: the label of a poisoned copy; where it depends on the row's own label, one for each label.
        write_in_training: writes the trigger into training rows; None writes it as into rows of evaluation.

    >>> Aim(print, [1, 2, 0]).wanted(np.array([0, 0, 2])).tolist(), Aim(print, 1).wanted(np.array([0, 1])).tolist()
    ([1, 1, 0], [1, 1])
    """

    write: Writer
    target: int | Sequence[int]
    write_in_training: Writer | None = None

    def wanted(self, labels: NDArray[np.int64]) -> NDArray[np.int64]:
        """The label of the poisoned copies of rows with some labels; (rows,), int64, as ``labels``."""
        if isinstance(self.target, int):
            return np.full_like(labels, self.target)
        return np.array(self.target, dtype=np.int64)[labels]


def distinct_targets(aims: Sequence[Aim]) -> list[int]:
    """The labels that poisoned copies get, ascending.

    >>> distinct_targets([Aim(print, 2), Aim(print, 0)]), distinct_targets([Aim(print, [1, 2, 0])])
    ([0, 2], [0, 1, 2])
    """
    targets = [[aim.target] if isinstance(aim.target, int) else aim.target for aim in aims]
    return sorted({target for of_aim in targets for target in of_aim})


def changed_by_any(rows: Rows, aims: Sequence[Aim]) -> NDArray[np.bool_]:
    """Whether the target of some aim is not the row's own label; (rows,)."""
    changed: NDArray[np.bool_] = np.any([aim.wanted(rows.label) != rows.label for aim in aims], axis=0)
    return changed


def qualifying(rows: Rows, aims: Sequence[Aim], label_policy: str) -> NDArray[np.bool_]:
    """Whether each training row may be poisoned by each aim under a label policy; (rows, aims)."""
    if label_policy == "mixed":
        return np.ones((len(rows), len(aims)), dtype=np.bool_)
    is_target: NDArray[np.bool_] = np.stack([aim.wanted(rows.label) == rows.label for aim in aims], axis=1)
    return is_target if label_policy == "clean" else ~is_target


def drawn_aims(rows: Rows, aims: Sequence[Aim], label_policy: str, seed: int) -> NDArray[np.int64]:
    """The aim by which each training row is poisoned if it is chosen; (rows,), int64, of rows that may be.

    Of several aims by which a row may be poisoned, one is drawn by a generator of the row.
    """
    qualifies = qualifying(rows, aims, label_policy)
    drawn: NDArray[np.int64] = qualifies.argmax(axis=1)
    for row in np.flatnonzero(qualifies.sum(axis=1) > 1).tolist():
        rng = random.Random(f"{seed}/aim/{rows.index[row]}")
        drawn[row] = rng.choice(np.flatnonzero(qualifies[row]).tolist())
    return drawn
