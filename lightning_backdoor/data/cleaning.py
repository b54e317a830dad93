"""The base class of data defenses, which clean training rows; how their result is applied and recorded."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning_utilities.core.rank_zero import rank_zero_info

from lightning_backdoor.batch import Victim
from lightning_backdoor.data.label_values import check_victim_labels
from lightning_backdoor.data.rows import Rewritten, Rows
from lightning_backdoor.errors import InputError

#: stands for the victim of the same rows in a grid, which puts its checkpoint there; elsewhere, none is given.
SAME_ROWS = "undefended"


class LabelledText(NamedTuple):
    """A text and the index of its class, from 0."""

    text: str
    label: int


class TrustedRows(NamedTuple):
    """Clean validation rows, in two disjoint parts.

    Attributes:
        statistics: the selection and reference rows, from which a defense may learn.
        threshold: the rows on which a defense sets its threshold and that it must not use for anything else.
    """

    statistics: list[LabelledText]
    threshold: list[LabelledText]

    @classmethod
    def of(cls, statistics: Rows, threshold: Rows) -> TrustedRows:
        """Text and label of the rows of both parts."""
        return cls(labelled(statistics), labelled(threshold))


class DataDefense(ABC):
    """Base class of data defenses: repairs or removes training rows before anything is trained on them.

    Attributes:
        needs_victim: whether the defense uses a victim that was trained on the same rows; the data module then loads
            the victim given as its argument ``victim``.

    Example::

        class DropShort(DataDefense):
            def clean(self, rows, trusted, victim):
                return [row.text if len(row.text) > 20 else None for row in rows]
    """

    needs_victim = False

    @property
    def model_precision(self) -> str | None:
        """The precision of a model of the defense's own, which is recorded with the results; None if it has none."""
        return None

    @abstractmethod
    def clean(self, rows: Sequence[LabelledText], trusted: TrustedRows, victim: Victim | None) -> list[str | None]:
        """Returns the text of each training row after cleaning: unchanged, repaired, or None to remove the row.

        Every process calls it on the same rows, and the result of the first one counts.

        Args:
            rows: the training rows, an unknown part of them poisoned, with the labels that training would use.
            trusted: clean validation rows.
            victim: a victim trained on the same rows, in evaluation mode; None unless the class sets ``needs_victim``.
        """


class CleaningRecord(NamedTuple):
    """The record of what a data defense did to the training rows.

    Attributes:
        rows: number of training rows before cleaning.
        removed: number of rows removed.
        changed: number of rows whose text was repaired.
        precision: share of poisoned rows among the rows removed or changed; NaN if there are none.
        recall: share of the poisoned rows that were removed or changed; NaN if no row is poisoned.
    """

    rows: int
    removed: int
    changed: int
    precision: float
    recall: float


def labelled(rows: Rows) -> list[LabelledText]:
    """Text and label of each row: the only columns that a defense may use."""
    return list(map(LabelledText, rows.text, rows.label.tolist()))


def clean_training(
    rows: Rows, defense: DataDefense, trusted: TrustedRows, victim: Victim | None
) -> tuple[Rows, CleaningRecord]:
    """Cleans the training rows by a defense, compares what it did with the true poison flags, and says how much it did.

    A row whose text is repaired keeps its flags but has no spans, since the place of the trigger is no longer known.

    Raises:
        InputError: the defense returns anything but a text or None per row, or removes all rows.
    """
    name = type(defense).__name__
    texts = cleaned_texts(defense.clean(labelled(rows), trusted, victim), len(rows), name)
    touched = np.array([text != before for text, before in zip(texts, rows.text, strict=True)], dtype=np.bool_)
    changed = [(i, text) for i, text in enumerate(texts) if text is not None and touched[i]]
    repaired = Rewritten([i for i, _ in changed], [text for _, text in changed], [()] * len(changed))
    cleaned = repaired.in_place(rows).where(np.array([text is not None for text in texts], dtype=np.bool_))
    if not cleaned:
        raise InputError("data_defense", f"{name} removes all training rows", "make it less strict")
    hits, poisoned, altered = (int(flags.sum()) for flags in (rows.poisoned & touched, rows.poisoned, touched))
    removed = len(rows) - len(cleaned)
    record = CleaningRecord(
        rows=len(rows),
        removed=removed,
        changed=altered - removed,
        precision=_share(hits, altered),
        recall=_share(hits, poisoned),
    )
    rank_zero_info(f"{name} left out {removed} of {len(rows)} training rows and changed {record.changed}")
    return cleaned, record


def load_victim(
    defense: DataDefense,
    reader: object,
    path: str | None,
    device: torch.device | None,
    check_rows: Callable[[dict[str, Any]], None],
    label_names: Sequence[str] | None = None,
) -> Victim:
    """Loads the trained victim that a data defense uses, by the class of the module that is to be trained.

    Args:
        defense: the defense, for messages.
        reader: the module that is to be trained, a ``TextClassifier``, whose class loads the victim.
        path: path of a checkpoint or model folder; None or ``SAME_ROWS`` if none is given, which is an error.
        device: device of the victim; None means the CPU.
        check_rows: is given the state of the data module with which a checkpoint was trained, if it is recorded;
            raises ``InputError`` if its training rows may be rows on which the defended victim is evaluated.
        label_names: names of the classes; None if they are unknown.

    Raises:
        InputError: no path is given, the module's class cannot load victims, the victim cannot be loaded, or has other
            labels or another vocabulary, or see ``check_rows``.
    """
    if path is None or path == SAME_ROWS:
        problem = f"{type(defense).__name__} needs a victim trained on the same rows"
        raise InputError("data.victim", problem, "give the checkpoint of a run")
    load = getattr(type(reader), "load_trained", None)
    if load is None:
        raise InputError("model", f"{type(reader).__name__} cannot load a trained victim", "give a TextClassifier")
    try:
        with torch.random.fork_rng(devices=[]):  # leaves the random numbers of training unchanged
            victim: Victim = load(path)
        if getattr(victim, "trained_on", None) is not None:
            check_rows(victim.trained_on)  # type: ignore[attr-defined]
        check_victim_labels(getattr(victim, "hparams", {}).get("labels"), label_names, "data.victim")
        _check_tokenizer(victim, reader)
    except InputError as error:
        raise error.under("data.victim") from None
    victim.network.to(device or "cpu")
    return victim


def _check_tokenizer(victim: Victim, reader: object) -> None:
    """Rejects a victim that reads other tokens than the model that is to be trained: it stands for that model."""
    tokenizer = getattr(reader, "tokenizer", None)
    if tokenizer is not None and tokenizer.get_vocab() != victim.tokenizer.get_vocab():
        problem = "its tokenizer has another vocabulary than that of the model to be trained"
        raise InputError("data.victim", problem, "give a victim of the same model")


def cleaned_texts(answer: object, count: int, name: str) -> list[str | None]:
    """The texts that a data defense answers with, as a list.

    Args:
        answer: what :meth:`DataDefense.clean` returned.
        count: number of rows that it was given.
        name: the class of the defense, for messages.

    Raises:
        InputError: the answer is anything but a text or None per row.
    """
    if isinstance(answer, str) or not isinstance(answer, Sequence):
        raise InputError("data_defense", f"{name}.clean returns a {type(answer).__name__}", "return a list of texts")
    if len(answer) != count:
        problem = f"{name}.clean returns {len(answer)} texts for {count} rows"
        raise InputError("data_defense", problem, "return a text or None for each row")
    for text in answer:
        if text is not None and not isinstance(text, str):
            problem = f"{name}.clean returns a {type(text).__name__} for a row"
            raise InputError("data_defense", problem, "return a text or None for each row")
    return list(answer)


def _share(part: int, whole: int) -> float:
    return part / whole if whole else math.nan
