"""Joining the outputs of the shards of a scan into the output of one scan, with its verdict."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lightning_backdoor.commands.scan.facts import Facts
from lightning_backdoor.commands.scan.output import Output
from lightning_backdoor.commands.scan.page import Page
from lightning_backdoor.commands.scan.settings import FACTS, SHARD, read_settings, settings_path
from lightning_backdoor.commands.scan.tally import Line, Tally, parsed_line
from lightning_backdoor.errors import InputError


class Part(NamedTuple):
    """The output of one shard.

    Attributes:
        path: its file.
        shard: the entry ``SHARD`` of its settings.
        settings: its other settings.
        facts: what is known about the threshold of each defense.
    """

    path: Path
    shard: dict[str, Any]
    settings: dict[str, Any]
    facts: dict[str, Facts]

    def lines(self) -> Iterator[Line]:
        """The lines of the part.

        Raises:
            InputError: it is not complete, or holds something else.
        """
        first, last = self.shard["texts"]
        count = 0
        for encoded in _encoded(self.path):
            line = parsed_line(encoded.decode("utf-8", "replace"), list(self.facts))
            if line is None or not encoded.endswith(b"\n"):
                raise InputError("join", f"line {count + 1} of {self.path} is not a line of a scan", "scan it again")
            count += 1
            yield line
        if count != last - first:
            problem = f"{self.path} has {count} of the {last - first} lines of its shard"
            raise InputError("join", problem, "continue its scan with --resume")


class Joined(NamedTuple):
    """The parts of a scan.

    Attributes:
        settings: the settings of the scan that they are parts of.
        facts: what is known about the threshold of each defense.
        parts: the parts in the order of the texts.
        differing: names of the defenses whose threshold differs between parts.
    """

    settings: dict[str, Any]
    facts: dict[str, Facts]
    parts: list[Part]
    differing: list[str]


def read_parts(paths: Sequence[str]) -> Joined:
    """Reads which shards some files hold, in any order.

    Raises:
        InputError: a file is not the output of a shard, or they are not all shards of one scan.
    """
    parts = [_part(Path(path)) for path in paths]
    first = parts[0]
    for part in parts[1:]:
        for name in first.settings.keys() | part.settings.keys():
            if part.settings.get(name) != first.settings.get(name):
                raise InputError(
                    "join", f"{name} differs between {first.path} and {part.path}", "join one scan's parts"
                )
        if (part.shard["of"], part.shard["input"]) != (first.shard["of"], first.shard["input"]):
            raise InputError(
                "join", f"{first.path} and {part.path} are not shards of one scan", "join one scan's parts"
            )
    parts.sort(key=lambda part: part.shard["number"])
    numbers = [part.shard["number"] for part in parts]
    missing = [str(number) for number in range(1, first.shard["of"] + 1) if number not in numbers]
    if missing:
        shown = ", ".join(missing[:10]) + (f" and {len(missing) - 10} more" if len(missing) > 10 else "")
        raise InputError("join", f"of {first.shard['of']} shards these are missing: {shown}", "name the file of each")
    twice = next((part.path for part in parts if numbers.count(part.shard["number"]) > 1), None)
    if twice is not None:
        raise InputError("join", f"the shard of {twice} is named twice", "name each once")
    thresholds = {name: {part.facts[name].threshold for part in parts} for name in first.facts}
    differing = [name for name, values in thresholds.items() if len(values) > 1]
    return Joined({**first.settings, SHARD: None}, parts[0].facts, parts, differing)


def join_parts(joined: Joined, output: Output, page: Page | None) -> Tally:
    """Writes the lines of all parts, in the order of the texts.

    Args:
        joined: the parts.
        output: the output, which has no lines; it is left unfinished.
        page: the token view, which gets the lines; or None.

    Returns:
        The counts of all parts.

    Raises:
        InputError: a part is not complete; the output is removed.
    """
    tally = Tally(list(joined.facts))
    file = output.opened()
    try:
        for line in (line for part in joined.parts for line in part.lines()):
            file.write(line.json)
            tally.add(line)
            if page is not None:
                page.add(line)
    except BaseException:
        output.discard()
        raise
    return tally


def _part(path: Path) -> Part:
    if not path.is_file():
        raise InputError("join", f"{path} is not a file", "name the outputs of all shards")
    settings = read_settings(path) or {}
    try:
        shard = settings.pop(SHARD)
        facts = {str(name): Facts(**known) for name, known in settings.pop(FACTS).items()}
        first, last = map(int, shard["texts"])
        if not (facts and 0 <= first <= last <= int(shard["input"]) and 1 <= int(shard["number"]) <= int(shard["of"])):
            raise ValueError("out of range")
    except (AttributeError, KeyError, TypeError, ValueError):
        beside = settings_path(path)
        problem = f"{beside.name} beside {path} does not say which shard it is"
        if not beside.is_file():
            problem = f"there is no {beside.name} beside {path}, which would say which shard it is"
        raise InputError("join", problem, "name the outputs of scan --shard") from None
    return Part(path, shard, settings, facts)


def _encoded(path: Path) -> Iterator[bytes]:
    if path.suffix.lower() == ".parquet":
        from lightning_backdoor.commands.scan.lines_as_parquet import read_lines

        yield from read_lines(path)
        return
    with path.open("rb") as file:
        yield from file
