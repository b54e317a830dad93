"""The texts in a txt, csv, tsv or jsonl file, or on standard input, read one at a time."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from lightning_backdoor.errors import InputError
from lightning_backdoor.files.columns import column_positions, key_of
from lightning_backdoor.files.delimited import DELIMITERS, delimited_rows, looks_quoted
from lightning_backdoor.files.json_lines import parse_json
from lightning_backdoor.files.names import local_path

INPUT_FORMATS = ("txt", "csv", "tsv", "jsonl")


def read_texts(path: str, column: str = "text", quoting: bool | None = None) -> Iterator[str]:
    """Yields the texts of a file; only one of them is held in memory at a time.

    Args:
        path: a txt file (one text per line), a csv or tsv file, or a jsonl file (one object or string per line); ``-``
            reads lines of text from standard input.
        column: the column of a csv or tsv file, or the key of a jsonl file, that holds the text.
        quoting: whether the fields of a csv or tsv file are quoted; None to decide by the file, as for training data.

    Raises:
        InputError: the file is missing or has an unknown format (at once), or a line is malformed (when it is reached);
            the message names the line, counted from 1.
    """
    file_format = "txt" if path == "-" else Path(path).suffix.lstrip(".").lower()
    if file_format not in INPUT_FORMATS:
        raise InputError(
            "input", f"{path} has an unknown format", f"give a file that ends in {', '.join(INPUT_FORMATS)}"
        )
    if path != "-" and not local_path(path, "input").is_file():
        raise InputError("input", f"{path} is not a file", "give an existing file")
    return _texts(path, file_format, column, quoting)


def _texts(path: str, file_format: str, column: str, quoting: bool | None) -> Iterator[str]:
    binary = open(sys.stdin.fileno(), "rb", closefd=False) if path == "-" else Path(path).open("rb")  # noqa: SIM115
    # the decoder accepts bytes that are not UTF-8, so that the error can name their line
    with io.TextIOWrapper(binary, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        if file_format in DELIMITERS:
            texts = _table(file, path, column, DELIMITERS[file_format], quoting)
        else:
            texts = _jsonl(file, path, column) if file_format == "jsonl" else _lines(file)
        for number, text in texts:
            try:
                text.encode("utf-8")
            except UnicodeEncodeError:
                raise InputError(f"{path}, line {number}", "is not valid UTF-8", "correct or convert it") from None
            yield text


def _lines(file: IO[str]) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(file, start=1):
        yield number, line.rstrip("\r\n")


def _jsonl(file: IO[str], path: str, column: str) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        value = parse_json(line, where)
        if isinstance(value, dict):
            key = column if column in value else key_of(value, column)
            value = None if key is None else value[key]
        if not isinstance(value, str):
            raise InputError(where, f"has no text under {column!r}", "give a string")
        yield number, value


def _table(file: IO[str], path: str, column: str, delimiter: str, quoting: bool | None) -> Iterator[tuple[int, str]]:
    quoted = looks_quoted(Path(path), delimiter) if quoting is None else quoting
    rows = delimited_rows(file, path, delimiter, quoted)
    _, header = next(rows, (0, []))
    if header:
        position = column_positions(header, {column: "column"}, path, delimiter)[column]
        for number, row in rows:
            yield number, row[position]
