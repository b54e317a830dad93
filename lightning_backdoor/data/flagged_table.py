"""One file of a poison set: texts and labels, and which rows are poisoned, as far as the file says."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_backdoor.data.label_values import TRUTH, canonical
from lightning_backdoor.data.tables import column_names, read_file, texts_of
from lightning_backdoor.errors import InputError
from lightning_backdoor.files.columns import shown

#: names of columns in published sets, of which a table has at most one; ``0``, ``1``, ``2`` are those of pandas.
TEXTS = ("text", "sentence", "sentences", "0")
LABELS = ("label", "labels", "1")
FLAGS = ("poisoned", "is_poisoned", "poison", "poison_label", "2")
ORIGINALS = ("original_label",)


@dataclass(frozen=True)
class Columns:
    """Names of columns; where one is None, the table's own names decide."""

    text: str | None = None
    label: str | None = None
    flag: str | None = None
    original_label: str | None = None


@dataclass(frozen=True)
class FlaggedTable:
    """The rows of a file.

    Attributes:
        name: the file's path, for errors.
        texts: the texts.
        labels: the label values.
        flags: whether each row is poisoned, (rows,); None if the file does not say.
        originals: the label values before poisoning; None if the file has lost them.
        negatives: whether each row is a negative, (rows,).
        spans: the spans of the trigger in each text.
        index: the position of each row in its source, (rows,); None if the file does not say.
        label_names: names of the classes, if the file declares them.
        flag_column: the column of the flags, for errors.
    """

    name: str
    texts: list[str]
    labels: list[Any]
    flags: NDArray[np.bool_] | None
    originals: list[Any] | None
    negatives: NDArray[np.bool_]
    spans: list[tuple[tuple[int, int], ...]]
    index: NDArray[np.int64] | None
    label_names: list[str] | None
    flag_column: str

    def __len__(self) -> int:
        return len(self.texts)

    def at(self, row: int) -> str:
        """A row, counted from 0, as messages name it."""
        return f"{self.name}, row {row + 1}"

    def check_index(self, clean: NDArray[np.int64]) -> None:
        """Checks that no two clean rows, given by their places, have the same index.

        Poisoned rows find their clean row by it, and outcomes are compared by it.

        Raises:
            InputError: two have the same.
        """
        place: dict[int, int] = {}
        for row, index in zip(clean.tolist(), [] if self.index is None else self.index[clean].tolist(), strict=False):
            if (other := place.setdefault(index, row)) != row:
                problem = f"the index {index} is that of another clean row, row {other + 1}"
                raise InputError(self.at(row), problem, "give each clean row its own, or leave the column out")


def read_flagged(path: Path, columns: Columns, has_flags: bool) -> FlaggedTable:
    """Reads a file of a poison set.

    Args:
        path: a csv, tsv, jsonl or parquet file.
        columns: names of its columns.
        has_flags: whether a named column of flags or original labels must be there.

    Raises:
        InputError: the file does not read or is empty, a column is missing, or a value is not one of its column.
    """
    names = column_names(path)
    wanted = {"text_column": _chosen(columns.text, names, TEXTS), "label_column": _chosen(columns.label, names, LABELS)}
    for option, usual in (("text_column", TEXTS), ("label_column", LABELS)):
        if wanted[option] is None:
            problem = f"{path} has none of the columns {', '.join(usual)}"
            raise InputError(option, problem, f"name one of {shown(names)}")
    optional: tuple[tuple[str, str | None, tuple[str, ...]], ...] = (
        ("flag_column", columns.flag, FLAGS),
        ("original_label_column", columns.original_label, ORIGINALS),
    )
    for option, given, known in optional:
        required = given if has_flags or given in names else None
        wanted[option] = _chosen(required, names, known if given is None else ())
    others = [name for name in ("negative", "spans", "index") if name in names and name not in wanted.values()]
    if wanted["original_label_column"] is None:  # a column index is then that of any frame
        others = [name for name in others if name != "index"]
    options = {name: option for option, name in wanted.items() if name is not None} | {name: name for name in others}
    given_names = [name for name in wanted.values() if name is not None]
    if len(set(given_names)) < len(given_names):
        raise InputError("label_column", f"{shown(given_names)} name a column twice", "name each once")
    table = read_file(path, options, lists=("spans",))
    values = {option: table.columns[name] for name, option in options.items()}
    if not values["text_column"]:
        raise InputError("folder", f"{path} has no rows", "name another file by files")
    texts = texts_of(values["text_column"])
    blank = next((row for row, text in enumerate(texts) if not text.strip()), None)
    if blank is not None and not any(text.strip() for text in texts):
        raise InputError("text_column", f"{wanted['text_column']!r} of {path} is blank in all rows", "name another")
    flag_column = wanted["flag_column"]
    found = FlaggedTable(
        str(path),
        texts,
        values["label_column"],
        None if flag_column is None else _flags(values["flag_column"], flag_column, path),
        values.get("original_label_column"),
        _flags(values["negative"], "negative", path) if "negative" in values else np.zeros(len(texts), dtype=np.bool_),
        _spans(values["spans"], texts, path) if "spans" in values else [()] * len(texts),
        _numbers(values["index"], path) if "index" in values else None,
        table.label_names.get(str(wanted["label_column"])),
        flag_column or "",
    )
    for row, value in enumerate(found.labels):
        if value is None or value != value or not str(value).strip():
            raise InputError(found.at(row), f"{wanted['label_column']!r} is empty", "label every row")
    return found


def _chosen(given: str | None, names: Sequence[str], known: Sequence[str]) -> str | None:
    """The column that is named, or else the first known one that the table has."""
    return given if given is not None else next((name for name in known if name in names), None)


def _flags(values: list[Any], column: str, path: Path) -> NDArray[np.bool_]:
    words = [canonical("" if value is None else value) for value in values]
    truth = [TRUTH.get(word.lower(), word) for word in words]
    for row, word in enumerate(truth, start=1):
        if word not in TRUTH.values():
            problem = f"{column!r} is {values[row - 1]!r}, which is no flag"
            raise InputError(f"{path}, row {row}", problem, "write 1 for yes and 0 for no, or name another column")
    return np.array([word == "1" for word in truth], dtype=np.bool_)


def _numbers(values: list[Any], path: Path) -> NDArray[np.int64]:
    for row, value in enumerate(values, start=1):
        if not canonical("" if value is None else value).isdecimal():
            raise InputError(f"{path}, row {row}", f"index is {value!r}, which is no position", "write whole numbers")
    return np.array([int(canonical(value)) for value in values], dtype=np.int64)


def _spans(values: list[Any], texts: list[str], path: Path) -> list[tuple[tuple[int, int], ...]]:
    result = []
    for row, (value, text) in enumerate(zip(values, texts, strict=True)):
        try:
            given = json.loads(value) if isinstance(value, str) else value or []
            spans = tuple((int(start), int(end)) for start, end in given)
        except (TypeError, ValueError):
            spans = ((-1, -1),)
        if not all(0 <= start < end <= len(text) for start, end in spans):
            problem = f"spans are {str(value)[:60]}, which do not lie inside of the text"
            raise InputError(f"{path}, row {row + 1}", problem, "write them as [[start, end]]")
        result.append(spans)
    return result
