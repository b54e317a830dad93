"""The texts in a txt, csv, tsv, jsonl or parquet file, or on standard input, read one at a time."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import IO

from lightning_backdoor.errors import InputError, reason
from lightning_backdoor.files.columns import column_positions, key_of
from lightning_backdoor.files.delimited import DELIMITERS, delimited_rows, looks_quoted
from lightning_backdoor.files.json_lines import parse_json
from lightning_backdoor.files.names import local_path
from lightning_backdoor.files.text_files import DAMAGED, arrow_values, open_text

INPUT_FORMATS = ("txt", "csv", "tsv", "jsonl", "parquet")
#: number of rows of a parquet file that are held in memory.
ROWS_AT_ONCE = 1024


def read_all(
    paths: Sequence[str], column: str = "text", quoting: bool | None = None, start: int = 0, option: str = "input"
) -> Iterator[str]:
    """Yields the texts of several files, one after the other; see :func:`read_texts`.

    Args:
        paths: the files.
        column: see :func:`read_texts`.
        quoting: see :func:`read_texts`.
        start: number of texts to leave out at the beginning; row groups of parquet files are then not even read.
        option: the option that names the files, for errors.
    """
    sources = []
    skipping = start > 0
    for path in paths:
        rows = _rows_in(path, option) if skipping else None
        skipping = skipping and rows is not None
        skipped = min(start, rows or 0)
        sources.append(read_texts(path, column, quoting, skipped, option))
        start -= skipped
    return islice(chain.from_iterable(sources), start, None)


def count_texts(paths: Sequence[str], column: str = "text", quoting: bool | None = None) -> int | None:
    """The number of texts in some files; None if one of them is standard input or a pipe, which is read only once.

    Raises:
        InputError: see :func:`read_texts`.
    """
    if read_once(paths):
        return None
    total = 0
    for path in paths:
        rows = _rows_in(path, "input")
        total += sum(1 for _ in read_texts(path, column, quoting)) if rows is None else rows
    return total


def read_once(paths: Sequence[str]) -> bool:
    """Whether one of some files is standard input or a pipe."""
    return any(path == "-" or not Path(path).is_file() for path in paths)


def read_texts(
    path: str, column: str = "text", quoting: bool | None = None, start: int = 0, option: str = "input"
) -> Iterator[str]:
    """Yields the texts of a file; only one of them is held in memory at a time, of parquet files one row group.

    Args:
        path: a txt file (one text per line), a csv or tsv file, a jsonl file (one object or string per line), each of
            them perhaps compressed (``.gz``), or a parquet file; ``-`` reads lines of text from standard input.
        column: the column of a csv, tsv or parquet file, or the key of a jsonl file, that holds the text.
        quoting: whether the fields of a csv or tsv file are quoted; None to decide by the file, as for training data.
        start: number of texts to leave out at the beginning.
        option: the option that names the file, for errors.

    Raises:
        InputError: the file is missing or has an unknown format (at once), or a line is malformed (when it is reached);
            the message names the line, counted from 1.
    """
    file_format = _format(path)
    if file_format not in INPUT_FORMATS:
        raise InputError(
            option, f"{path} has an unknown format", f"give a file that ends in {', '.join(INPUT_FORMATS)}"
        )
    if path != "-" and (not local_path(path, option).exists() or local_path(path, option).is_dir()):
        raise InputError(option, f"{path} is not a file", "give an existing file")
    if file_format == "parquet":
        return _parquet(path, column, start)
    return islice(_texts(path, file_format, column, quoting), start, None)


def _format(path: str) -> str:
    return "txt" if path == "-" else Path(path.lower().removesuffix(".gz")).suffix.lstrip(".")


def _texts(path: str, file_format: str, column: str, quoting: bool | None) -> Iterator[str]:
    # bytes that are not UTF-8 are accepted here, so that the error can name their line
    if path == "-":
        binary = open(sys.stdin.fileno(), "rb", closefd=False)  # noqa: SIM115
        opened: IO[str] = io.TextIOWrapper(binary, encoding="utf-8-sig", errors="surrogateescape", newline="")
    else:
        opened = open_text(Path(path), errors="surrogateescape")
    with opened as file:
        if file_format in DELIMITERS:
            texts = _table(file, path, column, DELIMITERS[file_format], quoting)
        else:
            texts = _jsonl(file, path, column) if file_format == "jsonl" else _lines(file)
        try:
            for number, text in texts:
                try:
                    text.encode("utf-8")
                except UnicodeEncodeError:
                    raise InputError(f"{path}, line {number}", "is not valid UTF-8", "correct or convert it") from None
                yield text
        except DAMAGED as error:
            raise InputError(path, f"is damaged: {reason(error)}", "compress it anew") from None


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


def _parquet(path: str, column: str, start: int) -> Iterator[str]:
    """The texts of a parquet file, a row group at a time; a missing value is an empty text, as in training data."""
    import pyarrow as pa  # type: ignore[import-untyped]
    from pyarrow.parquet import ParquetFile  # type: ignore[import-untyped]

    try:
        with ParquetFile(Path(path)) as file:
            names = file.schema_arrow.names
            name = names[column_positions(names, {column: "column"}, path)[column]]
            type_ = file.schema_arrow.field(name).type
            value_type = type_.value_type if pa.types.is_dictionary(type_) else type_
            texts = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
            if not any(is_text(value_type) for is_text in texts):
                raise InputError("column", f"{name!r} of {path} holds {type_}", "name a column of texts")
            groups: list[int] = []
            row = 1  # of the first text in what is read next
            for group in range(file.num_row_groups):
                rows = file.metadata.row_group(group).num_rows
                if not groups and rows <= start:
                    start -= rows
                    row += rows
                else:
                    groups.append(group)
            for batch in file.iter_batches(ROWS_AT_ONCE, row_groups=groups, columns=[name]) if groups else ():
                for value in arrow_values(batch.column(0).slice(start), name, path, row + start):
                    yield value or ""
                start = max(0, start - batch.num_rows)
                row += batch.num_rows
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # the last by names of columns
        raise InputError(path, f"does not read as parquet: {reason(error)}", "write it anew") from None


def _rows_in(path: str, option: str) -> int | None:
    """The number of rows that a parquet file records; None for other files, which must be read to be counted."""
    if _format(path) != "parquet" or not local_path(path, option).is_file():
        return None
    import pyarrow as pa
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(Path(path)) as file:
            return int(file.metadata.num_rows)
    except (pa.ArrowException, OSError) as error:
        raise InputError(path, f"does not read as parquet: {reason(error)}", "write it anew") from None
