"""The tables of a source by split: local files, folders in the layouts of ``datasets``, and hub data sets."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from lightning_backdoor.data.split_files import one_table
from lightning_backdoor.data.tables import Table, from_dataset, joined, read_file, same_classes
from lightning_backdoor.errors import InputError, reason
from lightning_backdoor.files.columns import listed
from lightning_backdoor.files.names import local_path
from lightning_backdoor.files.packaged import resolve
from lightning_backdoor.files.split_names import SPLITS, split_files
from lightning_backdoor.files.text_files import table_format

if TYPE_CHECKING:
    from typing import TypeAlias

    from datasets import Dataset

    #: a split: the files that are its table, or a table that ``datasets`` has read.
    Part: TypeAlias = list[Path] | Dataset

#: upper limit on the files in a folder of tables; ``datasets`` takes minutes to look through a home folder.
MOST_FILES = 5000


def read_tables(
    path: str,
    columns: Mapping[str, str],
    name: str | None = None,
    splits: Mapping[str, str] | None = None,
    quoting: bool | None = None,
) -> dict[str, Table]:
    """Reads some columns of a source by split: always ``train``, and ``validation`` and ``test`` if they exist.

    Local files are never read from a cache. Where tables declare names of their classes, all indices are those of the
    names that the first table of the training rows declares.

    Args:
        path: hub name, folder, file, or ``package://`` name.
        columns: for each column to read, the option that names it, for errors.
        name: configuration of a hub data set that has several.
        splits: for ``train``, ``validation`` and ``test``, the split or the file in the folder to use.
        quoting: whether fields of csv and tsv files are quoted; None to decide by the file.

    Raises:
        InputError: the source does not exist, cannot be read, lacks a split or a column, has several files that may
            be one split, has the same rows as two splits, or declares a class in a table that the first lacks.
    """
    for split in splits or {}:
        if split not in SPLITS:
            raise InputError("splits", f"{split!r} is not a split", "give train, validation or test")
    local = local_path(resolve(path), "path")
    if local.is_file():
        if splits:
            raise InputError(
                "splits", f"{path} is one file", "leave splits out, or give the folder of the files as path"
            )
        return {"train": read_file(local, columns, quoting)}
    if table_format(local) and not local.exists():
        raise InputError("path", f"there is no file {path}", "give one that exists")
    files_within = (file for _, _, files in os.walk(local) for file in files)
    if len(list(islice(files_within, MOST_FILES + 1))) > MOST_FILES:
        raise InputError("path", f"{path!r} holds more than {MOST_FILES} files", "give the folder of the tables alone")
    wanted = {split: (source_name,) for split, source_name in splits.items()} if splits else SPLITS
    files = split_files(local, wanted, loosely=not splits) if local.is_dir() and name is None else {}
    parts: dict[str, Part] = {**files}
    if not files or ("train" not in files if splits is None else files.keys() != splits.keys()):
        parts = _chosen(_content(path, local, name), wanted, path, required=splits is not None)
    if "train" not in parts:
        raise InputError("splits", f"{path} has no training split", "name one as train")
    for split in ("validation", "test"):
        if _overlap(parts.get(split), parts["train"]):
            raise InputError("splits", f"{split} is what is trained on", "name another, or leave it out to cut it off")
    if _overlap(parts.get("test"), parts.get("validation")):
        problem = "test is what validation is, on which thresholds are set"
        raise InputError("splits", problem, "leave validation out, which is then cut off the training rows")
    tables = {split: _table(part, split, path, local, columns, quoting) for split, part in parts.items()}
    return {split: same_classes(table, tables["train"], f"{split} of {path}") for split, table in tables.items()}


def _overlap(part: Part | None, other: Part | None) -> bool:
    """Whether two splits are the same table, or have a file in common, under whatever names."""
    if isinstance(part, list) and isinstance(other, list):
        return not {file.resolve() for file in part}.isdisjoint(file.resolve() for file in other)
    return part is not None and part is other


def _table(part: Part, split: str, path: str, local: Path, columns: Mapping[str, str], quoting: bool | None) -> Table:
    try:
        if isinstance(part, list):
            files = one_table(part, split, local)
            return joined([read_file(file, columns, quoting) for file in files], [file.name for file in files])
        return from_dataset(part, columns, f"{split} of {path}")
    except InputError as error:
        if split == "train" or error.field not in columns.values():
            raise
        raise InputError(error.field, error.problem, f"{error.remedy}, or leave {split} out by splits") from None


def _chosen(
    content: Mapping[str, Part], wanted: Mapping[str, Sequence[str]], path: str, required: bool
) -> dict[str, Part]:
    parts = {}
    for split, names in wanted.items():
        name = next((name for name in names if name in content), None)
        if name is not None:
            parts[split] = content[name]
        elif required:
            raise InputError("splits", f"{path} has no {names[0]!r}", f"it has {listed(list(content))}")
    if not parts and len(content) == 1:
        return {"train": next(iter(content.values()))}
    return parts


def _content(path: str, local: Path, name: str | None) -> Mapping[str, Part]:
    """The splits of a hub data set or of a folder, as ``datasets`` knows them: their files, or tables of other formats.

    A folder's own csv, tsv, jsonl and parquet files are read by this library, unless its README.md says how to read
    them.
    """
    from datasets import Dataset, load_dataset, load_from_disk
    from datasets.data_files import DataFilesDict, get_data_patterns  # private: datasets 5.2.0

    try:
        if not local.exists():
            return dict(load_dataset(path, name))
        with quiet_datasets():
            if (local / "state.json").is_file() or (local / "dataset_dict.json").is_file():
                saved = load_from_disk(str(local))
                return {"train": saved} if isinstance(saved, Dataset) else dict(saved)
            if name is None and not _is_described(local):
                files = DataFilesDict.from_patterns(get_data_patterns(str(local)), base_path=str(local))
                of_split = {str(split): [Path(path) for path in paths] for split, paths in files.items()}
                tables = {split: [path for path in paths if table_format(path)] for split, paths in of_split.items()}
                if any(tables.values()):
                    return {split: paths for split, paths in tables.items() if paths}
            with TemporaryDirectory() as cache:  # the cache of datasets knows files by their modification time
                return dict(load_dataset(str(local), name, cache_dir=cache, keep_in_memory=True))
    except Exception as error:  # datasets passes on any error of its loaders, the hub and the network
        raise InputError(
            "path",
            f"{path!r} is neither a csv, tsv, jsonl or parquet file nor a folder or hub data set that loads:"
            f" {reason(error)}",
        ) from error


def _is_described(folder: Path) -> bool:
    """Whether a folder's README.md describes its files or columns, as on the hub."""
    readme = folder / "README.md"
    text = readme.read_text(encoding="utf-8", errors="replace") if readme.is_file() else ""
    return text.startswith("---") and re.search(r"^(configs|dataset_info):", text, re.MULTILINE) is not None


@contextmanager
def quiet_datasets() -> Iterator[None]:
    """Silences ``datasets`` while local files are read or written, which is fast; errors are still raised."""
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
