"""The texts in a txt, csv, tsv or jsonl file, or on standard input, read one at a time."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from lightning_backdoor.errors import InputError

INPUT_FORMATS = ("txt", "csv", "tsv", "jsonl")


def read_texts(path: str, column: str = "text") -> Iterator[str]:
    """Yields the texts of a file; only one of them is held in memory at a time.

    Args:
        path: a txt file (one text per line), a csv file, a tsv file (fields without quotes), or a jsonl file (one
            object or string per line); ``-`` reads lines of text from standard input.
        column: the column of a csv or tsv file, or the key of a jsonl file, that holds the text.

    Raises:
        InputError: the file is missing or has an unknown format (at once), or a line is malformed (when it is reached);
            the message names the line, counted from 1.
    """
    file_format = "txt" if path == "-" else Path(path).suffix.lstrip(".").lower()
    if file_format not in INPUT_FORMATS:
        raise InputError(
            "input", f"{path} has an unknown format", f"give a file that ends in {', '.join(INPUT_FORMATS)}"
        )
    if path != "-" and not Path(path).is_file():
        raise InputError("input", f"{path} is not a file", "give an existing file")
    return _texts(path, file_format, column)


def _texts(path: str, file_format: str, column: str) -> Iterator[str]:
    reader = {"txt": _lines, "jsonl": _jsonl, "csv": _table, "tsv": _table}[file_format]
    binary = open(sys.stdin.fileno(), "rb", closefd=False) if path == "-" else Path(path).open("rb")  # noqa: SIM115
    # the decoder accepts bytes that are not UTF-8, so that the error can name their line
    with io.TextIOWrapper(binary, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        for number, text in reader(file, path, column):
            try:
                text.encode("utf-8")
            except UnicodeEncodeError:
                raise InputError(f"{path}, line {number}", "is not valid UTF-8", "correct or convert it") from None
            yield text


def _lines(file: IO[str], path: str, column: str) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(file, start=1):
        yield number, line.rstrip("\r\n")


def _jsonl(file: IO[str], path: str, column: str) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (
            ValueError,
            RecursionError,
        ) as error:  # also numbers with thousands of digits, and brackets nested too deep
            problem = error.msg if isinstance(error, json.JSONDecodeError) else error
            raise InputError(
                f"{path}, line {number}", f"is not JSON ({problem})", "correct or remove the line"
            ) from None
        text = value.get(column) if isinstance(value, dict) else value
        if not isinstance(text, str):
            raise InputError(f"{path}, line {number}", f"has no text under {column!r}", "give a string")
        yield number, text


def _table(file: IO[str], path: str, column: str) -> Iterator[tuple[int, str]]:
    if path.lower().endswith(".tsv"):
        reader = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
    else:
        reader = csv.reader(file, strict=True)
    csv.field_size_limit(1 << 30)
    header: list[str] | None = None
    while True:
        number = reader.line_num + 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise InputError(
                f"{path}, line {number}", f"is malformed ({error})", "correct or remove the line"
            ) from None
        if header is None:
            header = row
            if column not in header:
                raise InputError("column", f"{path} has no column {column!r}", f"it has {', '.join(header)}")
        elif row:
            if len(row) != len(header):
                raise InputError(f"{path}, line {number}", f"has {len(row)} fields, the header has {len(header)}")
            yield number, row[header.index(column)]
