"""Reading tables: local files, folders and hub data sets, all through ``datasets``."""

from __future__ import annotations

import codecs
import gzip
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_backdoor.errors import InputError, reason
from lightning_backdoor.files.packaged import resolve

if TYPE_CHECKING:
    from datasets import Dataset

FORMATS = ("csv", "tsv", "jsonl", "parquet")
#: for each split, the names under which sources may have it.
SPLITS = {
    "train": ("train",),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test",),
}


def read_tables(path: str, name: str | None = None, splits: Mapping[str, str] | None = None) -> dict[str, Dataset]:
    """Reads the tables of a source by split: always ``train``, and ``validation`` and ``test`` if they exist.

    Args:
        path: hub name, folder, file, or ``package://`` name.
        name: configuration of a hub data set that has several.
        splits: for ``train``, ``validation`` and ``test``, the split or the file in the folder to use.

    Raises:
        InputError: the source does not exist, cannot be read, or lacks a split.
    """
    for split in splits or {}:
        if split not in SPLITS:
            raise InputError("splits", f"{split!r} is not a split", "give train, validation or test")
    local = Path(resolve(path)).expanduser()
    if local.is_file():
        if splits:
            raise InputError(
                "splits", f"{path} is one file", "leave splits out, or give the folder of the files as path"
            )
        return {"train": read_file(local)}
    if _format(local) and not local.exists():
        raise InputError("path", f"there is no file {path}", "give one that exists")
    wanted = {split: (source_name,) for split, source_name in splits.items()} if splits else SPLITS
    files = _split_files(local, wanted) if local.is_dir() and name is None else {}
    if files and ("train" in files if splits is None else files.keys() == splits.keys()):
        tables = {split: read_file(file) for split, file in files.items()}
    else:
        tables = _chosen(_read_with_datasets(path, local, name), wanted, path, required=splits is not None)
    if "train" not in tables:
        raise InputError("splits", f"{path} has no training split", "name one as train")
    return tables


def _chosen(
    loaded: dict[str, Dataset], wanted: Mapping[str, Sequence[str]], path: str, required: bool
) -> dict[str, Dataset]:
    tables = {}
    for split, names in wanted.items():
        name = next((name for name in names if name in loaded), None)
        if name is not None:
            tables[split] = loaded[name]
        elif required:
            raise InputError("splits", f"{path} has no {names[0]!r}", f"it has {', '.join(loaded)}")
    if not tables and len(loaded) == 1:
        return {"train": next(iter(loaded.values()))}
    return tables


def _split_files(folder: Path, wanted: Mapping[str, Sequence[str]]) -> dict[str, Path]:
    """The files directly in a folder that are named after a split, such as ``train.csv``, or given by full name."""
    files = {}
    for split, names in wanted.items():
        named = [folder / name for name in names if (folder / name).is_file()]
        candidates = named or [file for file in sorted(folder.iterdir()) if file.name.split(".")[0] in names]
        candidates = [file for file in candidates if file.is_file() and (named or _format(file))]
        if len(candidates) > 1:
            both = " and ".join(file.name for file in candidates)
            raise InputError("splits", f"{both} may both be {split}", "name one")
        if candidates:
            files[split] = candidates[0]
    return files


def _read_with_datasets(path: str, local: Path, name: str | None) -> dict[str, Dataset]:
    from datasets import load_dataset

    try:
        if not local.exists():
            return dict(load_dataset(path, name))
        with _quiet():
            return dict(load_dataset(str(local), name))
    except Exception as error:  # datasets passes on any error of its loaders, the hub and the network
        raise InputError(
            "path",
            f"{path!r} is neither a csv, tsv, jsonl or parquet file nor a folder or hub data set that loads:"
            f" {reason(error)}",
        ) from error


def read_file(path: Path) -> Dataset:
    """The table of a csv, tsv, jsonl or parquet file.

    Raises:
        InputError: the file has another format, or its content does not have the format of its file name.
    """
    from datasets import Dataset

    file_format = _format(path)
    if file_format is None:
        raise InputError("path", f"{path.name} is of no known format", f"give a file that ends in {', '.join(FORMATS)}")
    try:
        if file_format != "parquet":
            _check_utf8(path)
        with _quiet():
            if file_format == "parquet":
                return Dataset.from_parquet(str(path))
            if file_format == "jsonl":
                return Dataset.from_json(str(path))
            # keep_default_na: a review that reads "null" is a text, not a missing value
            quoting = {"sep": "\t", "quoting": 3} if file_format == "tsv" else {}
            return Dataset.from_csv(str(path), keep_default_na=False, **quoting)
    except InputError:
        raise
    except Exception as error:  # pandas, pyarrow, gzip and datasets wrap each other's errors in many types
        raise InputError("path", f"{path.name} does not read as {file_format}: {reason(error)}") from error


def _format(path: Path) -> str | None:
    """The format by a file's name, compressed or not; None if it is not one of ``FORMATS``."""
    suffixes = [suffix.lower().lstrip(".") for suffix in path.suffixes]
    if suffixes[-1:] == ["gz"]:
        suffixes.pop()
    suffix = suffixes[-1] if suffixes else ""
    file_format = "jsonl" if suffix == "json" else suffix
    return file_format if file_format in FORMATS else None


def _check_utf8(path: Path) -> None:
    decoder = codecs.getincrementaldecoder("utf-8")()
    line = 1
    with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as file:
        chunk = b"-"
        while chunk:
            chunk = file.read(1 << 20)
            try:
                decoder.decode(chunk, final=not chunk)
            except UnicodeDecodeError as error:
                line += error.object[: error.start].count(b"\n")
                raise InputError("path", f"{path.name} is not UTF-8 at line {line}", "convert it to UTF-8") from None
            line += chunk.count(b"\n")


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences ``datasets`` while local files are read, which is fast; errors are still raised."""
    from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
    from datasets.utils.logging import get_verbosity, set_verbosity

    level, disabled = get_verbosity(), are_progress_bars_disabled()
    set_verbosity(logging.CRITICAL)
    disable_progress_bars()
    try:
        yield
    finally:
        set_verbosity(level)
        if not disabled:
            enable_progress_bars()
