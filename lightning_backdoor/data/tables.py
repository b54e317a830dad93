"""Tables: the wanted columns of a csv, tsv, jsonl or parquet file, or of a data set of ``datasets``."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lightning_backdoor.data.label_values import by_names
from lightning_backdoor.errors import InputError, reason
from lightning_backdoor.files.columns import column_positions, key_of
from lightning_backdoor.files.delimited import DELIMITERS, delimited_rows, looks_quoted
from lightning_backdoor.files.json_lines import HOW_TO_WRITE, json_rows
from lightning_backdoor.files.text_files import TABLE_FORMATS, arrow_values, not_utf8, open_text, table_format

if TYPE_CHECKING:
    from datasets import Dataset


#: a field in quotes after a blank, which csv readers take for a part of the field.
QUOTED_AFTER_BLANK = re.compile(r'[ \t]+"[^"]*"\s*')


class Table(NamedTuple):
    """Some columns of a table.

    Attributes:
        columns: the values of each column by its name, all of the same length; a missing value is None. Values of csv
            and tsv files are strings, those of other tables have the types that they were written with.
        label_names: names of the classes, for each column of class indices that declares them.
    """

    columns: dict[str, list[Any]]
    label_names: dict[str, list[str]]


def read_file(
    path: Path, columns: Mapping[str, str], quoting: bool | None = None, lists: Collection[str] = ()
) -> Table:
    """Reads some columns of a csv, tsv, jsonl or parquet file.

    Args:
        path: the file, whose name tells the format; it is compressed if its name ends in ``.gz``.
        columns: for each column to read, the option that names it, for errors.
        quoting: whether fields of a csv or tsv file are quoted; None for csv files and for tsv files that look quoted
            (see :func:`lightning_backdoor.files.delimited.is_quoted`).
        lists: columns that may hold lists.

    Raises:
        InputError: the file has another format, its content does not have the format of its file name, a column is
            missing or holds lists, or a text is not UTF-8.
    """
    file_format = table_format(path)
    if file_format is None:
        raise InputError(
            "path",
            f"{path.name} is of no known format",
            f"give a file that ends in {', '.join(TABLE_FORMATS)}, as df.to_csv(path, index=False) writes it",
        )
    try:
        if file_format == "parquet":
            return _read_parquet(path, columns, lists)
        if file_format == "jsonl":
            return _read_json(path, columns, lists)
        return _read_delimited(path, columns, DELIMITERS[file_format], quoting)
    except InputError:
        raise
    except UnicodeDecodeError:
        raise not_utf8(path) from None
    except Exception as error:  # pyarrow's and zlib's errors in many types
        raise InputError(
            "path", f"{path.name} does not read as {file_format}: {reason(error)}", "write it anew"
        ) from error


def column_names(path: Path) -> list[str]:
    """The names of all columns of a table, without surrounding blanks, in their order.

    Raises:
        InputError: the file has another format, does not read as its name says, or is empty.
    """
    file_format = table_format(path)
    names: list[str] = []
    try:
        if file_format == "parquet":
            from pyarrow.parquet import read_schema  # type: ignore[import-untyped]

            names = read_schema(path).names
        elif file_format == "jsonl":
            with open_text(path) as file:
                names = list(dict.fromkeys(name for _, row in json_rows(file, str(path)) for name in row))
        elif file_format is not None:
            delimiter = DELIMITERS[file_format]
            with open_text(path) as file:
                _, names = next(delimited_rows(file, str(path), delimiter, looks_quoted(path, delimiter)), (0, []))
    except InputError:
        raise
    except UnicodeDecodeError:
        raise not_utf8(path) from None
    except Exception as error:  # pyarrow's and zlib's errors in many types
        raise InputError("path", f"{path} does not read as {file_format}: {reason(error)}", "write it anew") from error
    if not names:
        raise InputError("path", f"{path} has no rows", "name another, or leave it out")
    return [name.strip() for name in names]


def from_dataset(dataset: Dataset, columns: Mapping[str, str], name: str) -> Table:
    """Reads some columns of a data set of ``datasets``; ``name`` is for errors.

    Raises:
        InputError: a column is missing or holds lists, or a text is not UTF-8.
    """
    names = dataset.column_names
    features = dataset.features
    given = {column: names[i] for column, i in column_positions(names, columns, name).items()}
    label_names = {column: getattr(features[name], "names", None) for column, name in given.items()}
    plain = dataset.with_format(None).select_columns(list(dict.fromkeys(given.values())))
    try:
        values = {column: plain[name][:] for column, name in given.items()}
    except UnicodeDecodeError:  # without the row
        table = plain.with_format("arrow")[:]
        values = {column: [*arrow_values(table[of], column, name)] for column, of in given.items()}
    return _checked(
        Table(values, {column: list(names) for column, names in label_names.items() if names}), columns, name
    )


def joined(tables: Sequence[Table], names: Sequence[str]) -> Table:
    """One table of the rows of several, such as the shards of a table, whose ``names`` are for errors.

    Raises:
        InputError: see :func:`same_classes`.
    """
    first = tables[0]
    tables = [first, *(same_classes(table, first, name) for table, name in zip(tables[1:], names[1:], strict=True))]
    columns = {column: [value for table in tables for value in table.columns[column]] for column in first.columns}
    return first if len(tables) == 1 else Table(columns, first.label_names)


def same_classes(table: Table, first: Table, name: str) -> Table:
    """A table whose indices of classes mean what they mean in a first one, where both declare names of the classes.

    Args:
        table: the table.
        first: the first one, such as that of the training rows.
        name: name of the table, for errors.

    Raises:
        InputError: the table has a row of a class that the first one does not declare.
    """
    columns, label_names = {**table.columns}, {**table.label_names}
    for column, wanted in first.label_names.items():
        if label_names.get(column, wanted) != wanted:
            index = {class_name: i for i, class_name in enumerate(wanted)}
            columns[column] = by_names(columns[column], label_names[column], index, name)
            label_names[column] = wanted
    return Table(columns, label_names)


def texts_of(values: list[Any]) -> list[str]:
    """The values of a column as texts; missing ones are empty.

    >>> texts_of(["a", None, 7, float("nan")])
    ['a', '', '7', '']
    """
    return [
        value if isinstance(value, str) else "" if value is None or value != value else str(value) for value in values
    ]


def _read_delimited(path: Path, columns: Mapping[str, str], delimiter: str, quoting: bool | None) -> Table:
    quoted = looks_quoted(path, delimiter) if quoting is None else quoting
    with open_text(path) as file:
        rows = delimited_rows(file, str(path), delimiter, quoted)
        _, header = next(rows, (0, []))
        if not header:
            raise InputError("path", f"{path.name} is empty", "name another")
        positions = column_positions(header, columns, str(path), delimiter)
        values: dict[str, list[str]] = {column: [] for column in columns}
        appends = [(values[column].append, position) for column, position in positions.items()]
        for _, row in rows:
            for append, position in appends:
                append(row[position])
    for column, cells in values.items():
        if quoted and cells and all(map(QUOTED_AFTER_BLANK.fullmatch, cells)):
            problem = f"all fields of {column!r} in {path.name} have a blank before their quotes"
            raise InputError(columns[column], problem, f"write {delimiter!r} without a blank")
    return Table(values, {})


def _read_json(path: Path, columns: Mapping[str, str], lists: Collection[str]) -> Table:
    values: dict[str, list[Any]] = {column: [] for column in columns}
    names: dict[str, None] = {}
    missing = set(columns)
    row: dict[str, Any] = {}
    with open_text(path) as file:
        for where, row in json_rows(file, str(path)):
            if not row.keys() <= names.keys():
                names |= dict.fromkeys(row)
            for column, cells in values.items():
                key = column if column in row else key_of(row, column)
                missing -= set() if key is None else {column}
                value = None if key is None else row[key]
                if isinstance(value, str) and not value.isascii() and not _is_encodable(value):
                    raise InputError(where, f"{column!r} contains half of a character ({value[:40]!r})", "correct it")
                cells.append(value)
    single = [cells[0] for cells in values.values() if len(cells) == 1]
    if single and _is_collection(*row.values()) and (missing or _is_collection(*single)):
        raise InputError("path", f"{path.name} is one object, not one row per line", HOW_TO_WRITE)
    if missing and names:
        column_positions(list(names), columns, str(path))
    return _checked(Table(values, {}), columns, str(path), lists)


def _read_parquet(path: Path, columns: Mapping[str, str], lists: Collection[str]) -> Table:
    from pyarrow.parquet import ParquetFile

    with ParquetFile(path) as file:
        schema = file.schema_arrow
        names = {column: schema.names[i] for column, i in column_positions(schema.names, columns, str(path)).items()}
        read = file.read(columns=list(dict.fromkeys(names.values())))
    label_names = {}
    if b"huggingface" in (schema.metadata or {}):
        from datasets import Features

        features = Features.from_arrow_schema(schema)
        label_names = {column: list(getattr(features[name], "names", None) or ()) for column, name in names.items()}
    return _checked(
        Table(
            {column: [*arrow_values(read.column(name), column, str(path))] for column, name in names.items()},
            {column: given for column, given in label_names.items() if given},
        ),
        columns,
        str(path),
        lists,
    )


def _checked(table: Table, columns: Mapping[str, str], name: str, lists: Collection[str] = ()) -> Table:
    """Refuses lists and other values that are neither a text nor a number."""
    for column, values in table.columns.items():
        if column in lists:
            continue
        found = set(map(type, values))
        for types, what in (((list, dict), "lists"), (bytes, "bytes")):
            if any(issubclass(type_, types) for type_ in found):
                raise InputError(
                    columns[column], f"{column!r} of {name} holds {what}", "name a column of single values"
                )
    return table


def _is_collection(*values: object) -> bool:
    return any(isinstance(value, list | dict) for value in values)


def _is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
