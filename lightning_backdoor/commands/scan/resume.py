"""Resuming a scan from the lines that its output already has."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any, NamedTuple

from lightning_backdoor.commands.scan.output import Output
from lightning_backdoor.commands.scan.page import Page
from lightning_backdoor.commands.scan.settings import check_settings
from lightning_backdoor.commands.scan.tally import Tally, parsed_line
from lightning_backdoor.errors import InputError


class Begun(NamedTuple):
    """What an output already has.

    Attributes:
        texts: texts of a group that is only partly in the output, which are scored again.
        rest: the texts after them.
    """

    texts: list[str]
    rest: Iterator[str]


def resume(
    output: Output,
    texts: Iterator[str],
    settings: Mapping[str, Any],
    group_size: int,
    tally: Tally,
    page: Page | None,
    allowed: bool,
    source: str,
) -> Begun:
    """Reads the lines that the output already has, and removes an incomplete line at its end.

    Args:
        output: the output.
        texts: texts of the input, from its beginning.
        settings: see :func:`lightning_backdoor.commands.scan.settings.scan_settings`.
        group_size: number of texts that are read and scored together.
        tally: counts the lines.
        page: the token view, which gets the lines; or None.
        allowed: whether the output may have lines.
        source: name of the input, for errors.

    Raises:
        InputError: the output has lines and may have none, or they are the results of other texts or settings. The
            output is unchanged.
    """
    if not output.has_lines():
        return Begun([], texts)
    assert output.name is not None
    if not allowed:
        raise InputError("output", f"{output.name} exists", "add --resume to continue it, or name another file")
    check_settings(output.name, settings)
    complete = 0
    begun: list[str] = []
    for encoded in output.lines():
        text, whole = next(texts, None), encoded.endswith(b"\n")
        line = parsed_line(encoded.decode("utf-8", "replace"), list(tally.flagged)) if whole else None
        if text is None or not (line and json.loads(line.json)["text"] == text if whole else _begins(encoded, text)):
            problem = f"line {tally.texts + 1} of {output.name} is not the result of that text of {source}"
            raise InputError("output", problem, "name another file")
        if not whole:
            texts = chain([text], texts)
            break
        assert line is not None
        tally.add(line)
        if page is not None:
            page.add(line)
        complete += len(encoded)
        begun.append(text)
        if len(begun) == group_size:
            begun.clear()
    output.cut(complete)
    return Begun(begun, texts)


def _begins(encoded: bytes, text: str) -> bool:
    """Whether some bytes are the beginning of the line of a text."""
    start = (json.dumps({"text": text, "prediction": ""}, ensure_ascii=False) + "\n")[: -len('"}\n')].encode()
    return encoded.startswith(start) or start.startswith(encoded)
