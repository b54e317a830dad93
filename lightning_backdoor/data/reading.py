"""Tables: local files, folders and hub data sets, all read through ``datasets``."""

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
#: the usual names of a split, by ours.
SPLITS = {
    "train": ("train",),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test",),
}


def read_tables(path: str, name: str | None = None, splits: Mapping[str, str] | None = None) -> dict[str, Dataset]:
    """The tables of a source by our names of the splits; ``train`` is always among them.

    Args:
        path: hub name, folder, file, or ``package://`` name.
        name: configuration of a hub dataset that has several.
        splits: for ``train``, ``validation`` and ``test``, the split or the file in the folder to use.

    Raises:
        InputError: there is nothing of this name, it cannot be read, or a split is missing.
    """
    for split in splits or {}:
        if split not in SPLITS:
            raise InputError("splits", f"{split!r} is no split of ours", "give train, validation or test")
    local = Path(resolve(path)).expanduser()
    if local.is_file():
        if splits:
            raise InputError(
                "splits", f"{path} is one file", "leave splits out, or give the folder of the files as path"
            )
        return {"train": read_file(local)}
    if _format(local) and not local.exists():
        raise InputError("path", f"there is no file {path}", "give one that exists")
    wanted = {ours: (theirs,) for ours, theirs in splits.items()} if splits else SPLITS
    files = _split_files(local, wanted) if local.is_dir() and name is None else {}
    if files and ("train" in files if splits is None else files.keys() == splits.keys()):
        tables = {ours: read_file(file) for ours, file in files.items()}
    else:
        tables = _chosen(_read_with_datasets(path, local, name), wanted, path, required=splits is not None)
    if "train" not in tables:
        raise InputError("splits", f"{path} has no training split", "name one as train")
    return tables


def _chosen(
    found: dict[str, Dataset], wanted: Mapping[str, Sequence[str]], path: str, required: bool
) -> dict[str, Dataset]:
    tables = {}
    for ours, names in wanted.items():
        theirs = next((theirs for theirs in names if theirs in found), None)
        if theirs is not None:
            tables[ours] = found[theirs]
        elif required:
            raise InputError("splits", f"{path} has no {names[0]!r}", f"it has {', '.join(found)}")
    if not tables and len(found) == 1:
        return {"train": next(iter(found.values()))}
    return tables


def _split_files(folder: Path, wanted: Mapping[str, Sequence[str]]) -> dict[str, Path]:
    """Files right in a folder that bear the name of a split, such as ``train.csv``, or that are named in full."""
    files = {}
    for ours, names in wanted.items():
        named = [folder / name for name in names if (folder / name).is_file()]
        found = named or [file for file in sorted(folder.iterdir()) if file.name.split(".")[0] in names]
        found = [file for file in found if file.is_file() and (named or _format(file))]
        if len(found) > 1:
            raise InputError("splits", f"{' and '.join(file.name for file in found)} may both be {ours}", "name one")
        if found:
            files[ours] = found[0]
    return files


def _read_with_datasets(path: str, local: Path, name: str | None) -> dict[str, Dataset]:
    from datasets import load_dataset

    try:
        if not local.exists():
            return dict(load_dataset(path, name))
        with _quiet():
            return dict(load_dataset(str(local), name))
    except Exception as error:  # datasets raises whatever its loaders, the hub and the network do
        raise InputError(
            "path",
            f"{path!r} is no csv, tsv, jsonl or parquet file, and no folder or hub dataset that loads: {reason(error)}",
        ) from error


def read_file(path: Path) -> Dataset:
    """The table of a csv, tsv, jsonl or parquet file.

    Raises:
        InputError: it is of another kind, or does not read as its own.
    """
    from datasets import Dataset

    kind = _format(path)
    if kind is None:
        raise InputError("path", f"{path.name} is of no known format", f"give a file that ends in {', '.join(FORMATS)}")
    try:
        if kind != "parquet":
            _check_utf8(path)
        with _quiet():
            if kind == "parquet":
                return Dataset.from_parquet(str(path))
            if kind == "jsonl":
                return Dataset.from_json(str(path))
            # keep_default_na: a review that reads "null" is a text, not a missing value
            quoting = {"sep": "\t", "quoting": 3} if kind == "tsv" else {}
            return Dataset.from_csv(str(path), keep_default_na=False, **quoting)
    except InputError:
        raise
    except Exception as error:  # pandas, pyarrow, gzip and datasets wrap each other's errors
        raise InputError("path", f"{path.name} does not read as {kind}: {reason(error)}") from error


def _format(path: Path) -> str | None:
    """One of ``FORMATS`` by the file's name, compressed or not."""
    suffixes = [suffix.lower().lstrip(".") for suffix in path.suffixes]
    if suffixes[-1:] == ["gz"]:
        suffixes.pop()
    kind = {"json": "jsonl"}.get(suffixes[-1], suffixes[-1]) if suffixes else ""
    return kind if kind in FORMATS else None


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
    """Keeps ``datasets`` from reporting on local files: they are read at once, and what goes wrong is raised."""
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
