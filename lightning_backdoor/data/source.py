"""Sources: labelled texts from the hub, from local files, or from installed packages, all through ``datasets``."""

from __future__ import annotations

import codecs
import gzip
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lightning_backdoor.errors import InputError
from lightning_backdoor.packaged import resolve

if TYPE_CHECKING:
    from datasets import Dataset

FORMATS = ("csv", "tsv", "jsonl", "parquet")
SPLITS = {
    "train": ("train",),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test",),
}


@dataclass
class Source:
    """Where texts and labels come from.

    Args:
        path: hub name, folder (in any layout that ``datasets`` loads), csv, tsv, jsonl or parquet file, or a
            ``package://`` name of one of these. Tsv fields are read without quoting, as SST-2 and GLUE publish them.
        name: configuration of a hub dataset that has several.
        splits: for ``train``, ``validation`` and ``test``, the split or the file in the folder ``path`` to use; splits
            of the usual names are found without it, and what is missing is cut from the training rows.
        text_column: column of the texts.
        label_column: column of the labels.
        labels: names of the classes in order, for labels counted from 0; or each name with the values that mean it.
            Without it the source's own names are used, or its distinct values.
        rating_cut: for a column of ratings, two numbers: rows at or below the first are of the first class, rows at or
            above the second are of the second, and rows between are left out.
    """

    path: str
    name: str | None = None
    splits: dict[str, str] | None = None
    text_column: str = "text"
    label_column: str = "label"
    labels: list[str] | dict[str, list[int | str]] | None = None
    rating_cut: tuple[float, float] | None = None


class LabelledTexts(NamedTuple):
    """Texts of a split, and the class index of each."""

    texts: list[str]
    labels: list[int]


class Loaded(NamedTuple):
    """A source as read.

    Attributes:
        splits: ``train``, and ``validation`` and ``test`` where the source has them.
        label_names: in the order of the class indices.
        left_out: rows between the two numbers of ``rating_cut``.
    """

    splits: dict[str, LabelledTexts]
    label_names: list[str]
    left_out: int


def load_source(source: Source) -> Loaded:
    """Reads a source.

    Raises:
        InputError: it cannot be read, a column is missing, a label is unknown, or a text column is blank.
    """
    tables = {split: _columns(table, source, split) for split, table in _tables(source).items()}
    names, index = _labels(tables, source)
    splits, left_out = {}, 0
    for split, (texts, values, _) in tables.items():
        kept = [(text, index(value)) for text, value in zip(texts, values, strict=True)]
        rows = [(text, label) for text, label in kept if label is not None]
        left_out += len(kept) - len(rows)
        if not any(text.strip() for text, _ in rows):
            raise InputError(f"text_column: {source.text_column!r} is blank in all rows of {split}; name another")
        splits[split] = LabelledTexts([text for text, _ in rows], [label for _, label in rows])
    return Loaded(splits, names, left_out)


def _tables(source: Source) -> dict[str, Dataset]:
    """The source's tables by our names of the splits."""
    for split in source.splits or {}:
        if split not in SPLITS:
            raise InputError(f"splits: {split!r} is no split of ours; give train, validation or test")
    path = Path(resolve(source.path))
    if path.is_file():
        return {"train": _read_file(path)}
    if source.splits and path.is_dir() and all((path / file).is_file() for file in source.splits.values()):
        tables = {split: _read_file(path / file) for split, file in source.splits.items()}
    else:
        found = _read_with_datasets(str(path) if path.exists() else source.path, source)
        wanted = source.splits or {
            ours: theirs for ours, names in SPLITS.items() for theirs in names if theirs in found
        }
        missing = [theirs for theirs in wanted.values() if theirs not in found]
        if missing:
            raise InputError(f"splits: {source.path} has no {missing[0]!r}; it has {', '.join(found)}")
        tables = {ours: found[theirs] for ours, theirs in wanted.items()}
        if not tables and len(found) == 1:
            tables = {"train": next(iter(found.values()))}
    if "train" not in tables:
        raise InputError(f"splits: {source.path} has no training split; name one as train")
    return tables


def _read_with_datasets(path: str, source: Source) -> dict[str, Dataset]:
    from datasets import load_dataset

    try:
        return dict(load_dataset(path, source.name))
    except Exception as error:  # datasets raises whatever its loaders, the hub and the network do
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"path: {source.path!r} is no csv, tsv, jsonl or parquet file, and no folder or hub dataset that loads:"
            f" {reason}"
        ) from error


def _read_file(path: Path) -> Dataset:
    from datasets import Dataset

    suffixes = [suffix.lstrip(".") for suffix in path.suffixes if suffix != ".gz"]
    kind = {"json": "jsonl"}.get(suffixes[-1], suffixes[-1]) if suffixes else ""
    if kind not in FORMATS:
        raise InputError(f"path: {path.name} is of no known format; give a file that ends in {', '.join(FORMATS)}")
    if kind != "parquet":
        _check_utf8(path)
    try:
        if kind == "parquet":
            return Dataset.from_parquet(str(path))
        if kind == "jsonl":
            return Dataset.from_json(str(path))
        # keep_default_na: a review that reads "null" is a text, not a missing value
        quoting = {"sep": "\t", "quoting": 3} if kind == "tsv" else {}
        return Dataset.from_csv(str(path), keep_default_na=False, **quoting)
    except Exception as error:  # pandas, pyarrow and datasets wrap each other's errors
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise InputError(f"path: {path.name} does not read as {kind}: {' '.join(str(cause).split())[:300]}") from error


def _check_utf8(path: Path) -> None:
    decoder = codecs.getincrementaldecoder("utf-8")()
    line = 1
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        while chunk := file.read(1 << 20):
            try:
                decoder.decode(chunk)
            except UnicodeDecodeError as error:
                line += error.object[: error.start].count(b"\n")
                raise InputError(f"path: {path.name} is not UTF-8 at line {line}; convert it to UTF-8") from None
            line += chunk.count(b"\n")


def _columns(table: Dataset, source: Source, split: str) -> tuple[list[str], list[Any], list[str] | None]:
    """Texts, label values, and the label names that the table itself declares."""
    for field, column in (("text_column", source.text_column), ("label_column", source.label_column)):
        if column not in table.column_names:
            raise InputError(
                f"{field}: {split} of {source.path} has no column {column!r}; it has {', '.join(table.column_names)}"
            )
    names = getattr(table.features[source.label_column], "names", None)
    texts = ["" if text is None else str(text) for text in table[source.text_column]]
    return texts, list(table[source.label_column]), names


def _labels(tables: dict[str, tuple[list[str], list[Any], list[str] | None]], source: Source) -> tuple[list[str], Any]:
    """Names of the classes, and the function from a value to its class index (None leaves the row out)."""
    if source.rating_cut is not None:
        return _cut(source)
    declared = source.labels if source.labels is not None else tables["train"][2]
    distinct = {value for _, values, _ in tables.values() for value in values}
    if isinstance(declared, dict):
        index = {value: i for i, values in enumerate(declared.values()) for value in values}
        names = list(declared)
    elif declared is not None:
        names = list(declared)
        index = {i: i for i in range(len(names))} if all(isinstance(v, int) for v in distinct) else _by_name(names)
    else:
        if any(isinstance(value, float) for value in distinct):
            raise InputError(f"label_column: {source.label_column!r} holds fractions; set rating_cut for ratings")
        names = [str(value) for value in sorted(distinct, key=lambda value: (str(type(value)), value))]
        index = {value: names.index(str(value)) for value in distinct}
    unknown = sorted((value for value in distinct if value not in index), key=str)
    if unknown:
        raise InputError(
            f"labels: {unknown[0]!r} in column {source.label_column!r} is none of the labels"
            f" {', '.join(str(value) for value in index)}"
        )
    if len(names) < 2:
        raise InputError(f"labels: {names} is no choice; a classifier needs at least two labels")
    return names, index.__getitem__


def _by_name(names: Sequence[str]) -> dict[Any, int]:
    return {name: i for i, name in enumerate(names)}


def _cut(source: Source) -> tuple[list[str], Any]:
    low, high = source.rating_cut or (0.0, 0.0)
    names = list(source.labels or ("negative", "positive"))
    if low > high or len(names) != 2:
        raise InputError(f"rating_cut: ({low}, {high}) with labels {names} does not cut into two; give low <= high")

    def index(value: Any) -> int | None:
        try:
            rating = float(value)
        except (TypeError, ValueError):
            raise InputError(
                f"label_column: {value!r} in {source.label_column!r} is no rating; name a column of numbers"
            ) from None
        return 0 if rating <= low else 1 if rating >= high else None

    return names, index
