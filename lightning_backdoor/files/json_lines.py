"""The rows of jsonl files and of JSON arrays; the depth of nested values is bounded."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from io import TextIOBase
from typing import Any

from lightning_backdoor.errors import InputError

HOW_TO_WRITE = 'write one row per line: df.to_json(path, orient="records", lines=True)'


class _WithRepeatedKey(dict[str, Any]):
    """An object of which a key is given twice."""

    key: str


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object from its pairs; one of its own class if a key is repeated, since the row is not known here."""
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    repeating = _WithRepeatedKey(found)
    repeating.key = Counter(key for key, _ in pairs).most_common(1)[0][0]
    return repeating


_decode_row = json.JSONDecoder(object_pairs_hook=_object).decode


def parse_json(text: str, where: str, decode: Callable[[str], Any] = json.loads) -> Any:
    """The value of a JSON text.

    Args:
        text: the text.
        where: file and line of the text, for errors.
        decode: the function that reads it.

    Raises:
        InputError: the text is not JSON, or its values are nested too deep.
    """
    try:
        return decode(text)
    except RecursionError:
        problem = "values are nested too deep"
    except json.JSONDecodeError as error:
        problem = error.msg
    except ValueError as error:  # a number with thousands of digits
        problem = str(error)
    raise InputError(where, f"is not JSON ({problem})", "correct or remove the line")


def json_rows(file: TextIOBase, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the rows of a jsonl file, or of a file that is one JSON array, each with the file's name and its line.

    Args:
        file: the open file.
        name: the file's name, for errors.

    Raises:
        InputError: a line is not JSON, a row is not an object or has a key twice, or the file is one object with many
            rows.
    """
    lines = ((number, line) for number, line in enumerate(file, start=1) if line.strip())
    for count, (number, line) in enumerate(lines):
        where = f"{name}, line {number}"
        if count == 0 and line.lstrip().startswith("["):
            rows = parse_json(line + file.read(), where, _decode_row)
            yield from ((f"{name}, row {i}", _row(row, f"{name}, row {i}")) for i, row in enumerate(rows, start=1))
            return
        try:
            row = parse_json(line, where, _decode_row)
        except InputError:
            if count == 0 and line.strip() == "{" and _is_json(line + file.read()):
                raise InputError(name, "is one object, not one row per line", HOW_TO_WRITE) from None
            raise
        yield where, _row(row, where)


def _row(row: Any, where: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise InputError(where, "is not an object", HOW_TO_WRITE)
    if isinstance(row, _WithRepeatedKey):
        raise InputError(where, f"has the key {row.key[:40]!r} twice", "give each key once")
    return row


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
