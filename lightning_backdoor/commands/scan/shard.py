"""A shard of a scan: a run of whole groups of texts, so that the shards, joined in order, are the whole output."""

from __future__ import annotations

import re
from typing import NamedTuple

from lightning_backdoor.errors import InputError


class Shard(NamedTuple):
    """One of the parts into which a scan is divided.

    Attributes:
        number: its number, from 1.
        of: number of all shards.
    """

    number: int
    of: int

    def bounds(self, texts: int, group_size: int) -> tuple[int, int]:
        """The first text of the shard, and the text after its last one.

        Args:
            texts: number of all texts.
            group_size: number of texts that are read and scored together; no group is divided.

        >>> [Shard(number, 3).bounds(100, 10) for number in (1, 2, 3)]
        [(0, 30), (30, 60), (60, 100)]
        >>> [Shard(number, 3).bounds(15, 10) for number in (1, 2, 3)]
        [(0, 0), (0, 10), (10, 15)]
        """
        groups = -(-texts // group_size)
        start, end = (groups * number // self.of for number in (self.number - 1, self.number))
        return min(start * group_size, texts), min(end * group_size, texts)

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"


def shard(value: str) -> Shard:
    """Parses a shard as it is written on the command line.

    Raises:
        InputError: it is not the number of a shard.

    >>> shard("3/16")
    Shard(number=3, of=16)
    """
    match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", value.strip())
    parsed = Shard(int(match[1]), int(match[2])) if match else None
    if parsed is None or not 1 <= parsed.number <= parsed.of:
        raise InputError("shard", f"{value[:40]!r} is not one of a number of shards", "count from 1, as in 3/16")
    return parsed
