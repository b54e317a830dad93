"""Which file of a published poison set holds which rows, by the names of files in the layouts that are known."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lightning_backdoor.data.split_files import one_table
from lightning_backdoor.errors import InputError, reason
from lightning_backdoor.files.columns import listed
from lightning_backdoor.files.names import local_path
from lightning_backdoor.files.packaged import resolve
from lightning_backdoor.files.split_names import SPLITS
from lightning_backdoor.files.text_files import table_format

#: what a file may hold: rows of which some are poisoned, clean rows, poisoned rows, poisoned rows to add to clean ones.
ROLES = (*(f"{split}{kind}" for split in SPLITS for kind in ("", "_clean", "_poison")), "train_added")
#: endings of file names, after the name of a split, of clean and of poisoned rows.
CLEAN, POISON = ("-clean", "_clean"), ("-poison", "_poison", "-poisoned", "_poisoned")
#: rows of which some are poisoned, beside other files: OpenBackdoor's stream for detection.
STREAM = ("-detect",)


def poison_layout(folder: str, clean_folder: str | None, files: Mapping[str, str] | None) -> dict[str, Path]:
    """The files of a poison set by what they hold; see ``ROLES``.

    Args:
        folder: the folder of the files.
        clean_folder: the folder of the clean files, where they have a folder of their own.
        files: the files by role, with their names in ``folder``; None if the names of the files tell.

    Raises:
        InputError: a folder or file does not exist, two files may be the same one, a role is unknown, or one file is
            given for two splits.
    """
    poisoned = _existing(folder, "folder")
    if files is not None:
        return _named(poisoned, files)
    stems = _stems(poisoned)
    found: dict[str, list[Path]] = {}
    if clean_folder is not None:
        clean = _existing(clean_folder, "clean_folder")
        for split, names in SPLITS.items():
            found[f"{split}_clean"] = _of(_stems(clean), names)
            found["train" if split == "train" else f"{split}_poison"] = _of(stems, names)
        return {role: _one(paths, role, poisoned) for role, paths in found.items() if paths}
    for split, names in SPLITS.items():
        plain, stream = _of(stems, names), _of(stems, names, STREAM)
        clean_rows, poison = _of(stems, names, CLEAN), _of(stems, names, POISON)
        if poison:
            found[f"{split}_clean"], found[f"{split}_poison"] = clean_rows or plain, poison
        elif plain or stream or clean_rows:
            found[split], found[f"{split}_clean"] = plain or stream, clean_rows
    return {role: _one(paths, role, poisoned) for role, paths in found.items() if paths}


def _existing(folder: str, option: str) -> Path:
    path = local_path(resolve(folder), option)
    if not path.is_dir():
        raise InputError(option, f"there is no folder {folder}", "give the folder of the published files")
    return path


def _named(folder: Path, files: Mapping[str, str]) -> dict[str, Path]:
    result: dict[str, Path] = {}
    role_of: dict[Path, str] = {}
    for role, name in files.items():
        if role not in ROLES:
            raise InputError("files", f"{role!r} is nothing that a file holds", f"give any of {', '.join(ROLES)}")
        if Path(name).is_absolute() or ".." in Path(name).parts:  # a grid knows the folder's content alone
            problem = f"{role} is {name}, which leads out of {folder}"
            raise InputError("files", problem, "give as folder the one that all files are in")
        result[role] = folder / name
        if not result[role].is_file() or table_format(result[role]) is None:
            raise InputError("files", f"{role} is {name}, which is no table in {folder}", "give a csv, tsv, …")
        other = role_of.setdefault(result[role].resolve(), role)
        if other.split("_")[0] != role.split("_")[0]:
            raise InputError("files", f"{other} and {role} are one file, {name}", "give each split rows of its own")
    return result


def _stems(folder: Path) -> dict[str, list[Path]]:
    """The tables directly in a folder, by their names in small letters without endings."""
    stems: dict[str, list[Path]] = {}
    try:
        for path in sorted(folder.iterdir()):
            if path.is_file() and table_format(path):
                stems.setdefault(path.name.split(".")[0].lower(), []).append(path)
    except OSError as error:
        raise InputError("folder", f"{folder} cannot be read: {reason(error)}", "give another folder") from None
    if not stems:
        raise InputError("folder", f"{folder} holds no csv, tsv, jsonl or parquet file", "give the folder of the files")
    return stems


def _of(stems: Mapping[str, list[Path]], names: tuple[str, ...], endings: tuple[str, ...] = ("",)) -> list[Path]:
    return [path for name in names for ending in endings for path in stems.get(name + ending, [])]


def _one(paths: list[Path], role: str, folder: Path) -> Path:
    """The file of a role: of a csv and a parquet file of the same name, the latter."""
    try:
        (path,) = one_table(paths, role, folder)
    except (InputError, ValueError):
        problem = f"{listed([path.name for path in paths])} may all be {role}"
        raise InputError("files", problem, f"name one, as in files: {{{role}: {paths[0].name}}}") from None
    return path
