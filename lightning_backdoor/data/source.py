"""Sources of labelled texts: the Hugging Face hub, local files and folders, installed packages."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from numbers import Real
from typing import TYPE_CHECKING, Any, NamedTuple

from lightning_utilities.core.rank_zero import rank_zero_warn

from lightning_backdoor.data.label_values import Classes, LabelValue, declared_names, distinct, for_each, missing_words
from lightning_backdoor.data.reading import read_tables
from lightning_backdoor.data.tables import Table, texts_of
from lightning_backdoor.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: the value of ``joined_by`` that stands for the separator of the model's tokenizer.
SEPARATOR = "separator"


@dataclass
class Source:
    """A source of texts and labels: a hub data set, a file, a folder or an installed package.

    Local files are read anew each time; only the named columns are read. Label values are compared by what they say:
    ``0``, ``"0"``, ``" 0"`` and ``0.0`` are one value.

    Args:
        path: hub name, folder (in any layout that ``datasets`` loads, or written by ``save_to_disk``), csv, tsv, jsonl
            or parquet file, or a ``package://`` name of one of these; a ``Path`` becomes text.
        name: configuration of a hub data set that has several.
        splits: for ``train``, ``validation`` and ``test``, the split, or the file in the folder ``path``, to use. Not
            needed for splits and files with the usual names; a missing split is cut from the training rows.
        text_column: column of the texts; or several, whose texts are joined.
        label_column: column of the labels.
        labels: names of the classes in order, for labels counted from 0; or a mapping from each name to the values in
            the column that stand for it. By default the names that the source declares, or the values of the training
            rows.
        rating_cut: for a column of ratings, two numbers: rows at or below the first number are of the first class,
            rows at or above the second number are of the second class, and rows between are left out. ``labels`` are
            then the two names, as a list.
        quoting: whether the fields of a tsv file are in quotes where necessary, as csv writers write them; False if
            quotes are characters like any other, as in SST-2 and GLUE. By default the file decides: see
            :func:`lightning_backdoor.files.delimited.is_quoted`.
        joined_by: what joins the texts of several columns; the word ``separator`` stands for the separator of the
            model's tokenizer, for pairs of sentences.
    """

    path: str
    name: str | None = None
    splits: dict[str, str] | None = None
    text_column: list[str | int] | str | int = "text"
    label_column: str | int = "label"
    labels: list[str] | list[str | int | float] | dict[str, list[LabelValue] | LabelValue] | None = None
    rating_cut: tuple[float, float] | None = None
    # not in repr, by which checkpoints of earlier versions know their source
    quoting: bool | None = field(default=None, repr=False)
    joined_by: str = field(default=" ", repr=False)

    def __post_init__(self) -> None:
        if isinstance(self.path, os.PathLike):
            self.path = os.fspath(self.path)

    @property
    def text_columns(self) -> list[str]:
        """Names of the columns of the texts."""
        columns = self.text_column if isinstance(self.text_column, list | tuple) else [self.text_column]
        return [str(column) for column in columns]

    def with_separator(self, tokenizer: PreTrainedTokenizerBase) -> Source:
        """The source whose texts are joined by a tokenizer's separator, as often as it writes it between two texts.

        Raises:
            InputError: the tokenizer has no separator.
        """
        if tokenizer.sep_token is None:
            raise InputError("joined_by", "the model's tokenizer has no separator", "give the characters to join by")
        of_pair, of_one = (tokenizer.num_special_tokens_to_add(pair=pair) for pair in (True, False))
        return replace(self, joined_by=f" {tokenizer.sep_token * max(1, of_pair - of_one)} ")


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


def load_source(source: Source) -> Loaded:
    """Reads the texts and labels of a source.

    Raises:
        InputError: the source cannot be read, a column is missing or named twice, a label is missing, unknown, or the
            label of no training row, a text column is blank, two splits have the same texts, or all training rows are
            of one class.
    """
    column = str(source.label_column)
    _check_columns(source)
    columns = {**dict.fromkeys(source.text_columns, "text_column"), column: "label_column"}
    tables = read_tables(source.path, columns, source.name, source.splits, source.quoting)
    declared = source.labels if source.labels is not None else tables["train"].label_names.get(column)
    for split, table in tables.items():
        _check_labels(table.columns[column], split, source, by_words=declared is None and source.rating_cut is None)
    if source.rating_cut is None:
        # a column that declares its names holds indices
        by_index = source.labels is None and declared is not None
        classes = Classes(tables["train"].columns[column], declared, column, by_index)
        names = classes.names
        labels = {split: _class_indices(_values(split, tables, column, classes), classes, split) for split in tables}
    else:
        names = _names_of_cut(source)
        labels = {split: _cut(table.columns[column], source) for split, table in tables.items()}
    splits, left_out = {}, 0
    for split, indices in labels.items():
        texts = _texts(tables.pop(split), split, source)
        kept = [label for label in indices if label is not None]
        if len(kept) < len(indices):
            texts = [text for text, label in zip(texts, indices, strict=True) if label is not None]
        left_out += len(indices) - len(kept)
        if not kept:
            raise _no_rows(split, source)
        if not any(text.strip() for text in texts):
            raise InputError("text_column", f"{_shown(source)} is blank in all rows of {split}", "name another")
        splits[split] = LabelledTexts(texts, kept)
    _check_shared_texts(splits)
    used = set(splits["train"].labels)
    if len(used) < 2:
        raise InputError(
            "label_column",
            f"all training rows are {names[used.pop()][:40]!r} by {column!r}",
            "a classifier needs at least two classes",
        )
    return Loaded(splits, names, left_out)


def _check_columns(source: Source) -> None:
    """Checks that the columns of texts and labels are different ones, and that it is known what joins the texts."""
    columns = [column.strip() for column in source.text_columns]
    if not columns:
        raise InputError("text_column", "is an empty list", "name the column of the texts")
    if len(set(columns)) < len(columns):
        raise InputError("text_column", f"{_shown(source)} names a column twice", "name each once")
    if str(source.label_column).strip() in columns:
        raise InputError("label_column", f"{str(source.label_column)!r} is a column of the texts too", "name another")
    if len(columns) > 1 and source.joined_by == SEPARATOR:
        problem = f"{SEPARATOR!r} stands for the separator of a tokenizer, which is not known here"
        raise InputError("joined_by", problem, "load the source by a BackdoorDataModule, or give the characters")


def _check_labels(values: list[Any], split: str, source: Source, by_words: bool) -> None:
    """Checks that every row has a label; ``by_words`` if words such as ``nan`` may stand for a missing one."""
    if not values:
        raise _no_rows(split, source)
    column, different = str(source.label_column), distinct(values)
    missing = {value for value in different if value is None or value != value or not str(value).strip()}
    if missing:
        row = next(row for row, value in enumerate(values, start=1) if value in missing)
        raise InputError("label_column", f"{column!r} is empty in row {row} of {split}", "label every row")
    words = missing_words(different) if by_words else set()
    if words:
        row, value = next((row, value) for row, value in enumerate(values, start=1) if value in words)
        raise InputError(
            "label_column",
            f"{column!r} is {value!r} in row {row} of {split}, which stands for a missing label",
            "label every row, or name the classes by labels",
        )


def _values(split: str, tables: Mapping[str, Table], column: str, classes: Classes) -> list[Any]:
    """The label values of a split as the training rows have them, also where it alone declares names of its indices."""
    table, of_training = tables[split], tables["train"].label_names.get(column)
    if of_training is not None or column not in table.label_names:
        return table.columns[column]
    return classes.values_of(table.columns[column], table.label_names[column], split)


def _class_indices(values: list[Any], classes: Classes, split: str) -> list[int | None]:
    """The class of each value; every one is a class of the training rows."""
    labels = for_each(values, classes.index)
    if None in labels:
        row = labels.index(None)
        raise InputError(
            "label_column",
            f"{classes.unknown(values[row])}, but row {row + 1} of {split} has it",
            f"label all rows alike, or leave {split} out by splits",
        )
    return labels


def _texts(table: Table, split: str, source: Source) -> list[str]:
    """The texts of a split; says how many rows have none."""
    parts = []
    for column in source.text_columns:
        texts = texts_of(table.columns[column])
        if empty := sum(not text or text.isspace() for text in texts):
            rank_zero_warn(f"text_column: {column!r} is null or empty in {empty} of {len(texts)} rows of {split}")
        parts.append(texts)
    if len(parts) == 1:
        return parts[0]
    return [source.joined_by.join(text for text in row if text) for row in zip(*parts, strict=True)]


def _check_shared_texts(splits: Mapping[str, LabelledTexts]) -> None:
    """Checks that no two splits have the same texts; says how many texts of a split are in another one as well."""
    for split, other in (("validation", "train"), ("test", "train"), ("test", "validation")):
        if split not in splits or other not in splits:
            continue
        texts, others = set(splits[split].texts), set(splits[other].texts)
        shared = len(texts & others)
        if shared == len(texts) == len(others):
            raise InputError("splits", f"{split} has the same texts as {other}", "give other rows, or leave it out")
        if shared:
            rank_zero_warn(f"splits: {shared} of {len(texts)} texts of {split} are texts of {other} as well")


def _names_of_cut(source: Source) -> list[str]:
    cut: object = source.rating_cut
    if not isinstance(cut, list | tuple) or len(cut) != 2 or not all(map(_is_number, cut)):
        raise InputError("rating_cut", f"{str(cut)[:60]} is not two numbers", "give [low, high]")
    low, high = cut
    if isinstance(source.labels, Mapping):
        problem = "a mapping to values has no effect, since rating_cut decides the classes"
        raise InputError("labels", problem, "give a list of two names, or leave rating_cut out")
    names = ["negative", "positive"] if source.labels is None else declared_names(source.labels)
    if not low <= high or len(names) != 2:
        raise InputError(
            "rating_cut",
            f"[{low}, {high}] with labels {names} does not cut into two",
            "give low <= high and two labels",
        )
    return names


def _cut(values: list[Any], source: Source) -> list[int | None]:
    """The class of each rating; None between the two numbers of ``rating_cut``."""
    low, high = source.rating_cut or (0.0, 0.0)

    def index(value: Any) -> int | None:
        try:
            rating = math.nan if isinstance(value, str) and "_" in value else float(value)  # 1_0 is 10 in Python alone
        except (TypeError, ValueError, OverflowError):
            rating = math.nan
        if not math.isfinite(rating):
            raise InputError(
                "label_column",
                f"{repr(value)[:60]} in {str(source.label_column)!r} is not a rating",
                "name a column of numbers",
            )
        return 0 if rating <= low else 1 if rating >= high else None

    indices = {value: index(value) for value in dict.fromkeys(values)}
    return [indices[value] for value in values]


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _no_rows(split: str, source: Source) -> InputError:
    return InputError("path", f"{split} of {source.path} has no rows", "name another source or split")


def _shown(source: Source) -> str:
    return " and ".join(repr(column) for column in source.text_columns)
