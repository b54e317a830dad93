"""The folders that a report is made of: grids, and the tests of single runs, found below the folders that are named."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from lightning_backdoor.benchmark.report.grid_folders import is_grid, read_grid
from lightning_backdoor.benchmark.report.single_runs import is_test, read_test
from lightning_backdoor.benchmark.report.source import Source
from lightning_backdoor.errors import InputError, escaped


def read_sources(folders: Sequence[Path]) -> list[Source]:
    """Reads the results of all grids and tests in some folders; a folder in several of them is read once.

    Args:
        folders: grids' output folders, runs' folders, folders of single tests, or folders of such folders.

    Raises:
        InputError: a folder does not exist, has no results, or has results that cannot be read.
    """
    results: dict[Path, None] = {}
    for folder in folders:
        if not folder.is_dir():
            raise InputError("RUNS", f"{escaped(str(folder))} is not a folder", "give folders of grids and runs")
        try:
            below = [*_folders_with_results(folder.resolve())]
        except OSError as error:
            raise InputError("RUNS", f"{escaped(str(folder))} cannot be read ({error.strerror})") from None
        if not below:
            remedy = "give output folders of benchmark, and run folders after test"
            raise InputError("RUNS", f"{escaped(str(folder))} has no results of benchmark or test", remedy)
        results |= dict.fromkeys(below)
    labels = short_names([*results])
    return [
        read_grid(folder, label) if is_grid(folder) else read_test(folder, label)
        for folder, label in zip(results, labels, strict=True)
    ]


def short_names(folders: Sequence[Path]) -> list[str]:
    """Names for folders: their paths without the part that all have in common, with control characters escaped.

    Different folders have different names, for which backslashes are doubled.

    >>> short_names([Path("/lab/a/demo"), Path("/lab/b/demo")])
    ['a/demo', 'b/demo']
    >>> short_names([Path("/lab/a/demo")])
    ['demo']
    >>> print(*short_names([Path("/lab/red \\x1b[31m")]))
    red \\x1b[31m
    """
    above = os.path.commonpath([folder.parent for folder in folders])
    return [escaped(folder.relative_to(above).as_posix().replace("\\", "\\\\")) for folder in folders]


def _folders_with_results(folder: Path) -> Iterator[Path]:
    """The grids and tests in a folder, in the order of their names; what lies in a grid belongs to it."""
    if is_grid(folder):
        yield folder
        return
    if is_test(folder):
        yield folder
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.is_symlink() and not path.name.startswith("."):
            yield from _folders_with_results(path)
