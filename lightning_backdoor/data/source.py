"""Sources of labelled texts: the Hugging Face hub, local files, installed packages, all read through ``datasets``."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from lightning_backdoor.data.reading import read_tables
from lightning_backdoor.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass
class Source:
    """A source of texts and labels: a hub data set, a file, a folder or an installed package.

    Args:
        path: hub name, folder (in any layout that ``datasets`` loads), csv, tsv, jsonl or parquet file, or a
            ``package://`` name of one of these. Tsv fields are read without quoting, as SST-2 and GLUE publish them.
        name: configuration of a hub data set that has several.
        splits: for ``train``, ``validation`` and ``test``, the split, or the file in the folder ``path``, to use. Not
            needed for splits and files with the usual names; a missing split is cut from the training rows.
        text_column: column of the texts.
        label_column: column of the labels.
        labels: names of the classes in order, for labels counted from 0; or a mapping from each name to the values in
            the column that stand for it. By default the names that the source declares, or its distinct values.
        rating_cut: for a column of ratings, two numbers: rows at or below the first number are of the first class,
            rows at or above the second number are of the second class, and rows between are left out.
    """

    path: str
    name: str | None = None
    splits: dict[str, str] | None = None
    text_column: str = "text"
    label_column: str = "label"
    labels: list[str] | dict[str, list[int | str]] | None = None
    rating_cut: tuple[float, float] | None = None


class LabelledTexts(NamedTuple):
    """The texts of a split, and the class index of each."""

    texts: list[str]
    labels: list[int]


class Loaded(NamedTuple):
    """The content of a source.

    Attributes:
        splits: ``train``, and ``validation`` and ``test`` where the source has them.
        label_names: names of the classes in the order of their indices.
        left_out: number of rows between the two numbers of ``rating_cut``.
    """

    splits: dict[str, LabelledTexts]
    label_names: list[str]
    left_out: int


class _Columns(NamedTuple):
    texts: list[str]
    values: list[Any]
    names: list[str] | None


def load_source(source: Source) -> Loaded:
    """Reads the texts and labels of a source.

    Raises:
        InputError: the source cannot be read, a column is missing, a label is missing or unknown, a text column is
            blank, or all training rows are of one class.
    """
    tables = {
        split: _columns(table, source, split)
        for split, table in read_tables(source.path, source.name, source.splits).items()
    }
    names, index = _cut(source) if source.rating_cut is not None else _classes(tables, source)
    splits, left_out = {}, 0
    for split, (texts, values, _) in tables.items():
        kept = [(text, index(value)) for text, value in zip(texts, values, strict=True)]
        rows = [(text, label) for text, label in kept if label is not None]
        left_out += len(kept) - len(rows)
        if not rows:
            raise InputError("path", f"{split} of {source.path} has no rows", "name another source or split")
        if not any(text.strip() for text, _ in rows):
            raise InputError("text_column", f"{source.text_column!r} is blank in all rows of {split}", "name another")
        splits[split] = LabelledTexts([text for text, _ in rows], [label for _, label in rows])
    classes = set(splits["train"].labels)
    if len(classes) < 2:
        raise InputError(
            "label_column",
            f"all training rows are {names[classes.pop()]!r} by {source.label_column!r}",
            "a classifier needs at least two classes",
        )
    return Loaded(splits, names, left_out)


def _columns(table: Dataset, source: Source, split: str) -> _Columns:
    """The texts, the label values, and the label names that the table declares."""
    columns = {}
    for field, column in (("text_column", source.text_column), ("label_column", source.label_column)):
        if column not in table.column_names:
            raise InputError(
                field,
                f"{split} of {source.path} has no column {column!r}",
                f"it has {', '.join(table.column_names)}",
            )
        columns[field] = list(table[column])
        if any(isinstance(value, list | dict) for value in columns[field]):
            raise InputError(field, f"{column!r} of {source.path} holds lists", "name a column of single values")
    for row, value in enumerate(columns["label_column"], start=1):
        if value is None or (isinstance(value, str) and not value.strip()):
            raise InputError(
                "label_column", f"{source.label_column!r} is empty in row {row} of {split}", "label every row"
            )
    return _Columns(
        ["" if text is None else str(text) for text in columns["text_column"]],
        columns["label_column"],
        getattr(table.features[source.label_column], "names", None),
    )


def _classes(tables: dict[str, _Columns], source: Source) -> tuple[list[str], Callable[[Any], int | None]]:
    """Names of the classes, and the function from a label value to its class index."""
    declared = source.labels if source.labels is not None else tables["train"].names
    distinct = {value for table in tables.values() for value in table.values}
    if isinstance(declared, dict):
        names = list(declared)
        pairs = [(value, i) for i, values in enumerate(declared.values()) for value in values]
    elif declared is not None:
        names = list(declared)
        numbers = all(isinstance(value, int | float) for value in distinct)
        pairs = [(i if numbers else name, i) for i, name in enumerate(names)]
    else:
        if any(isinstance(value, float) for value in distinct):
            raise InputError("label_column", f"{source.label_column!r} holds fractions", "set rating_cut for ratings")
        values = sorted(distinct, key=lambda value: (str(type(value)), value))
        names = [str(value) for value in values]
        pairs = [(value, i) for i, value in enumerate(values)]
    index: dict[Any, int] = dict(pairs)
    if len(set(names)) < len(names) or len(index) < len(pairs):
        raise InputError("labels", f"{declared} gives two classes the same name or value", "give different ones")
    unknown = sorted((value for value in distinct if value not in index), key=str)
    if unknown:
        raise InputError(
            "labels",
            f"{unknown[0]!r} in column {source.label_column!r} is not one of the labels"
            f" {', '.join(repr(value) for value in index)}",
        )
    return names, index.__getitem__


def _cut(source: Source) -> tuple[list[str], Callable[[Any], int | None]]:
    """Names of the two classes, and the function from a rating to its class index; None leaves the row out."""
    low, high = source.rating_cut or (0.0, 0.0)
    names = list(source.labels or ("negative", "positive"))
    if low > high or len(names) != 2:
        raise InputError(
            "rating_cut",
            f"[{low}, {high}] with labels {names} does not cut into two",
            "give low <= high and two labels",
        )

    def index(value: Any) -> int | None:
        try:
            rating = float(value)
        except (TypeError, ValueError):
            rating = math.nan
        if math.isnan(rating):
            raise InputError(
                "label_column", f"{value!r} in {source.label_column!r} is not a rating", "name a column of numbers"
            )
        return 0 if rating <= low else 1 if rating >= high else None

    return names, index
