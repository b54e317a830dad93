"""The files in a folder that are named after a split."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from lightning_backdoor.errors import InputError, reason
from lightning_backdoor.files.text_files import table_format

#: for each split, the names under which sources may have it.
SPLITS = {
    "train": ("train",),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test",),
}


def split_files(folder: Path, wanted: Mapping[str, Sequence[str]], loosely: bool) -> dict[str, list[Path]]:
    """The files directly in a folder that are named after a split, such as ``train.csv``, or given by full name.

    Args:
        folder: the folder.
        wanted: for each split, the names under which the folder may have it.
        loosely: whether the names are the usual ones. A full name is then that of a table, not of a script ``test``.
            Next to a file named exactly after the training split, names that begin with a split's name count as well,
            such as ``test-00000-of-00001.parquet``; as ``datasets`` reads them.

    Raises:
        InputError: the folder cannot be read.
    """
    try:
        tables = _tables(folder)
    except OSError as error:
        raise InputError("path", f"{folder} cannot be read: {reason(error)}", "give another folder") from None
    files = {}
    for split, names in wanted.items():
        given = [folder / name for name in names if (folder / name).is_file()]
        named = [file for file in given if not loosely or table_format(file)]
        files[split] = named or [file for file in tables if _stem(file) in names or _stem(file).lower() in names]
    if loosely and files["train"]:
        for split, names in wanted.items():
            begins = re.compile(rf"({'|'.join(names)})[-._ 0-9]", re.IGNORECASE)
            files[split] = files[split] or [file for file in tables if begins.match(file.name)]
    return {split: paths for split, paths in files.items() if paths}


def readable_tables(folder: Path, splits: Mapping[str, str] | None) -> list[Path]:
    """The tables that a source may read directly in a folder and in its ``data``.

    They are the files of the splits if both folders have all of them together, or else all tables, since ``datasets``
    knows more names.

    Args:
        folder: the folder, which is the source's ``path``.
        splits: the source's ``splits``.

    Raises:
        InputError: a folder cannot be read.
    """
    folders = [path for path in (folder, folder / "data") if path.is_dir()]
    wanted = {split: (name,) for split, name in splits.items()} if splits else SPLITS
    found = [split_files(path, wanted, loosely=not splits) for path in folders]
    if {split for files in found for split in files} >= {*(splits or ["train"])}:
        return [file for files in found for paths in files.values() for file in paths]
    return [file for path in folders for file in _tables(path)]


def _tables(folder: Path) -> list[Path]:
    return [file for file in sorted(folder.iterdir()) if file.is_file() and table_format(file)]


def _stem(file: Path) -> str:
    return file.name.split(".")[0]
