"""Opening text files, compressed or not, and the line of a file, or the row of a table, that is not UTF-8."""

from __future__ import annotations

import codecs
import gzip
import io
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, cast

from lightning_backdoor.errors import InputError

#: formats of tables, by the end of a file's name.
TABLE_FORMATS = ("csv", "tsv", "jsonl", "parquet")
#: errors of compressed files that are cut off, damaged, or not compressed at all.
DAMAGED = (EOFError, zlib.error, gzip.BadGzipFile)


def table_format(path: Path) -> str | None:
    """The format of a table by its file name, compressed or not; None if it is not one of ``TABLE_FORMATS``.

    >>> [table_format(Path(name)) for name in ("a.csv", "a.v2.TSV.gz", "a.json", "a.xlsx")]
    ['csv', 'tsv', 'jsonl', None]
    """
    suffixes = [suffix.lower().lstrip(".") for suffix in path.suffixes]
    if suffixes[-1:] == ["gz"]:
        suffixes.pop()
    suffix = suffixes[-1] if suffixes else ""
    file_format = "jsonl" if suffix == "json" else suffix
    return file_format if file_format in TABLE_FORMATS else None


def open_text(path: Path, errors: str = "strict") -> io.TextIOWrapper:
    """Opens a UTF-8 file for reading, with its line ends unchanged and without its byte order mark.

    Args:
        path: the file; it is decompressed if its name ends in ``.gz``.
        errors: what to do with bytes that are not UTF-8, as for ``open``.
    """
    return io.TextIOWrapper(_open(path), encoding="utf-8-sig", errors=errors, newline="")


def not_utf8(path: Path) -> InputError:
    """The error for a file that is not UTF-8; it names the first such line, unless the format has no lines."""
    if table_format(path) == "parquet":  # of whose values arrow_values names the row
        return InputError("path", f"{path.name} has columns whose names are not UTF-8", "write it anew")
    decoder = codecs.getincrementaldecoder("utf-8")()
    line = 1
    with _open(path) as file:
        chunk = b"-"
        while chunk:
            chunk = file.read(1 << 20)
            try:
                decoder.decode(chunk, final=not chunk)
            except UnicodeDecodeError as error:
                line += error.object[: error.start].count(b"\n")
                break
            line += chunk.count(b"\n")
    return InputError("path", f"{path.name} is not UTF-8 at line {line}", "convert it to UTF-8")


def arrow_values(values: Iterable[Any], column: str, table: str, first: int = 1) -> Iterator[Any]:
    """Yields the values of a column of pyarrow, whose texts may be any bytes, as Python has them.

    Args:
        values: the column, or a part of it.
        column: its name, for errors.
        table: name of the table, for errors.
        first: number of the first row, counted from 1.

    Raises:
        InputError: a text is not UTF-8; the message names the row.
    """
    for row, value in enumerate(values, first):
        try:
            read = value.as_py()
        except UnicodeDecodeError:
            raise InputError(f"{table}, row {row}", f"{column!r} is not UTF-8", "write it anew in UTF-8") from None
        yield read


def _open(path: Path) -> IO[bytes]:
    return cast("IO[bytes]", gzip.open(path)) if path.suffix.lower() == ".gz" else path.open("rb")
