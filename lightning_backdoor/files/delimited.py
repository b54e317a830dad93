"""The rows of csv and tsv files, read strictly: what cannot be read for certain is refused by its line."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from pathlib import Path

from lightning_backdoor.errors import InputError
from lightning_backdoor.files.text_files import open_text

DELIMITERS = {"csv": ",", "tsv": "\t"}


def delimited_rows(file: Iterable[str], name: str, delimiter: str, quoted: bool) -> Iterator[tuple[int, list[str]]]:
    """Yields the rows of a csv or tsv file, the header first, each with the line on which it begins; skips blank lines.

    Args:
        file: the lines of the file, with their line ends.
        name: the file's name, for errors.
        delimiter: the character between two fields.
        quoted: whether a field in quotes may contain delimiters, line ends and doubled quotes; otherwise quotes are
            characters like any other.

    Raises:
        InputError: a row has more or fewer fields than the header, or its quotes are malformed; the line is named.

    >>> list(delimited_rows(['text,label\\n', '"a, b",0\\n'], "rows.csv", ",", quoted=True))
    [(1, ['text', 'label']), (2, ['a, b', '0'])]
    """
    csv.field_size_limit(1 << 30)
    reader = csv.reader(file, delimiter=delimiter, quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE, strict=True)
    line, width = 1, 0
    try:
        for row in reader:
            if len(row) != width or not row:
                if not "".join(row).strip() and len(row) < max(width, 2):  # a blank line
                    line = reader.line_num + 1
                    continue
                if width:
                    problem = f"has {len(row)} fields, the header has {width}"
                    raise InputError(f"{name}, line {line}", problem, "correct the line or the header")
                width = len(row)
            yield line, row
            line = reader.line_num + 1
    except csv.Error as error:
        raise InputError(f"{name}, line {line}", f"is malformed ({error})", "correct or remove the line") from None


def looks_quoted(path: Path, delimiter: str) -> bool:
    """Whether the fields of a csv or tsv file are quoted: those of a tsv file by its content."""
    if delimiter != DELIMITERS["tsv"]:
        return True
    with open_text(path, errors="surrogateescape") as file:
        if not any('"' in line for line in file):
            return False
    with open_text(path, errors="surrogateescape") as file:
        return is_quoted(file, delimiter)


def is_quoted(file: Iterable[str], delimiter: str = "\t") -> bool:
    """Whether the fields of a tsv file are quoted as csv writers quote them, or quotes are characters like any other.

    Fields are quoted if every row, its quotes read strictly, has as many fields as the header, quotes occur in quoted
    fields only, and one of the following holds: a quoted field could not be written otherwise (it contains a
    delimiter, a line end or a doubled quote); all fields of a column are quoted; exactly the fields with commas are.
    Lines that each have as many fields as the header prove nothing if quotes join them, since they may be rows.

    >>> is_quoted(['text\\tlabel\\n', '"said ""no"" twice"\\t0\\n', 'fine\\t1\\n'])
    True
    >>> is_quoted(['text\\tlabel\\n', '"said no" twice\\t0\\n', '"fine"\\t1\\n'])
    False
    """
    taken: list[str] = []

    def lines() -> Iterator[str]:
        for line in file:
            taken.append(line)
            yield line

    reader = csv.reader(lines(), delimiter=delimiter, strict=True)
    csv.field_size_limit(1 << 30)
    width, needed, at_commas, any_quoted, ambiguous = 0, False, True, False, False
    whole_columns: list[bool] = []
    try:
        for row in reader:
            raw = [line.rstrip("\r\n").split(delimiter) for line in taken]
            taken.clear()
            if len(raw) == 1 and len(row) < 2 and not "".join(row).strip():
                continue
            header, width = not width, width or len(row)
            if len(row) != width:
                return False
            if len(raw) > 1 or len(raw[0]) != width:
                is_rows = all(len(fields) == width for fields in raw)  # several rows, if quotes are characters
                ambiguous |= is_rows
                needed |= not is_rows
                any_quoted = True
                continue
            in_quotes = [before != after for before, after in zip(raw[0], row, strict=True)]
            if any('"' in field and not quoted for field, quoted in zip(raw[0], in_quotes, strict=True)):
                return False
            any_quoted |= any(in_quotes)
            needed |= any('"' in field for field in row)
            if header:
                whole_columns = [True] * width
            else:
                whole_columns = [a and b for a, b in zip(whole_columns, in_quotes, strict=True)]
                at_commas &= all(("," in field) == quoted for field, quoted in zip(row, in_quotes, strict=True))
    except csv.Error:
        return False
    return any_quoted and (needed or (not ambiguous and (at_commas or any(whole_columns))))
