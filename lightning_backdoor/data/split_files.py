"""Whether the files of a split are one table: one file, or its numbered shards."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn

from lightning_backdoor.errors import InputError, escaped
from lightning_backdoor.files.columns import listed

#: a shard's number, and the number of shards if the name has it: ``train-00000-of-00002.parquet``, ``train_1.csv``.
SHARD = re.compile(r"(?<![.\d])(\d+)(?:-of-(\d+))?(?=(?:\.[A-Za-z]\w*)+$)")


def one_table(files: Sequence[Path], split: str, folder: Path) -> list[Path]:
    """The files of a split, if they are one table: a single file, or shards in their order.

    Of a csv and a parquet file with the same name otherwise, as ``poison`` writes them, the parquet file is taken.

    Raises:
        InputError: several files may be the split.
    """
    parquet = {file.with_suffix("") for file in files if file.suffix == ".parquet"}
    twins = [file for file in files if file.suffix == ".csv" and file.with_suffix("") in parquet]
    for twin in twins:
        rank_zero_info(escaped(f"{twin.with_suffix('.parquet').name} is read, and not {twin.name} beside it"))
    files = [file for file in files if file not in twins]
    if not _are_shards(files):
        root = folder.resolve()
        names = [os.path.relpath(file.resolve(), root) for file in files]
        raise InputError(
            "splits", f"{listed(names)} may {'both' if len(names) == 2 else 'all'} be {split}", "name one by splits"
        )
    return files


def _are_shards(files: Sequence[Path]) -> bool:
    """Whether files are one table: a single file, or files of one folder that differ in a shard's number only."""
    matches = [SHARD.search(file.name) for file in files]
    numbers = sorted(int(match[1]) for match in matches if match)
    totals = {int(match[2]) for match in matches if match and match[2]}
    if len(totals) == 1 and len(files) < max(totals):
        rank_zero_warn(escaped(f"only {len(files)} of {max(totals)} shards are there, such as {files[0].name}"))
    if len(files) == 1:
        return True
    if len(numbers) < len(files) or len(set(numbers)) < len(numbers):
        return False
    others = {(file.parent, SHARD.sub("", file.name)) for file in files}
    first = numbers[0]
    return len(others) == 1 and (
        len(totals) == 1 or (first in (0, 1) and numbers == [*range(first, first + len(numbers))])
    )
