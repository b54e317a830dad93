"""Texts of a file, one after another: txt, csv, tsv and jsonl, read as a stream."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from lightning_backdoor.errors import InputError

FORMATS = ("txt", "csv", "tsv", "jsonl")


def read_texts(path: str, column: str = "text") -> Iterator[str]:
    """The texts of a file, of which no more than one is held at a time.

    Args:
        path: of a txt file (a text a line), a csv file, a tsv file (fields without quoting), or a jsonl file (an
            object or a string a line); ``-`` reads lines of text from standard input.
        column: of csv and tsv, and key of jsonl, that holds the text.

    Raises:
        InputError: the file is missing or of another kind (at once), or a line is malformed (when it is reached);
            names the line, from 1.
    """
    kind = "txt" if path == "-" else Path(path).suffix.lstrip(".").lower()
    if kind not in FORMATS:
        raise InputError("input", f"{path} is of no known format", f"give a file that ends in {', '.join(FORMATS)}")
    if path != "-" and not Path(path).is_file():
        raise InputError("input", f"{path} is no file", "give one that exists")
    return _texts(path, kind, column)


def _texts(path: str, kind: str, column: str) -> Iterator[str]:
    reader = {"txt": _lines, "jsonl": _jsonl, "csv": _table, "tsv": _table}[kind]
    binary = open(sys.stdin.fileno(), "rb", closefd=False) if path == "-" else Path(path).open("rb")  # noqa: SIM115
    # bytes that are not UTF-8 are let through by the decoder, so that the line they are in can be named
    with io.TextIOWrapper(binary, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        for number, text in reader(file, path, column):
            try:
                text.encode("utf-8")
            except UnicodeEncodeError:
                raise InputError(f"{path}, line {number}", "is not valid UTF-8", "mend or convert it") from None
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
        except (ValueError, RecursionError) as error:  # numbers of thousands of digits, brackets without end
            reason = error.msg if isinstance(error, json.JSONDecodeError) else error
            raise InputError(f"{path}, line {number}", f"is no JSON ({reason})", "mend or remove the line") from None
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
            raise InputError(f"{path}, line {number}", f"is malformed ({error})", "mend or remove the line") from None
        if header is None:
            header = row
            if column not in header:
                raise InputError("column", f"{path} has no column {column!r}", f"it has {', '.join(header)}")
        elif row:
            if len(row) != len(header):
                raise InputError(f"{path}, line {number}", f"has {len(row)} fields, the header has {len(header)}")
            yield number, row[header.index(column)]
