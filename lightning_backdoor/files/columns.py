"""Columns of tables by name: where they are, and a message that helps where they are missing."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from lightning_backdoor.errors import InputError

#: names and cells that a message quotes, and the length at which each is cut.
SHOWN, SHOWN_LENGTH = 10, 40
NUMBER = re.compile(r"[-+]?[0-9]*[.,]?[0-9]+")


def column_positions(
    names: Sequence[str], columns: Mapping[str, str], table: str, delimiter: str | None = None
) -> dict[str, int]:
    """The position of each wanted column in a table; names compare without surrounding blanks.

    Args:
        names: names of all columns of the table.
        columns: for each wanted column, the option that names it, for errors.
        table: name of the table, for errors.
        delimiter: what separates the fields of a csv or tsv file, whose first line gives the names.

    Raises:
        InputError: a column is missing or there twice.

    >>> column_positions([" text", "label "], {"label": "label_column"}, "rows.csv")
    {'label': 1}
    """
    result = {}
    for column, option in columns.items():
        positions = [i for i, name in enumerate(names) if name == column]
        positions = positions or [i for i, name in enumerate(names) if name.strip() == column.strip()]
        if len(positions) > 1:
            problem = f"{table} has {len(positions)} columns {column!r}"
            if delimiter is not None and column.strip().isdecimal() and _looks_like_data(names):
                raise _no_header(option, problem, names)
            raise InputError(option, problem, "rename one of them")
        if positions:
            result[column] = positions[0]
    missing = next((column for column in columns if column not in result), None)
    if missing is None:
        return result
    problem, remedy = f"{table} has no column {missing!r}", f"it has {shown(names)}"
    if delimiter is not None:
        if len(names) == 1 and (other := next((sep for sep in ";|\t," if sep in names[0]), None)):
            problem += f": the first line is separated by {other!r}, not by {delimiter!r}"
            remedy = "write the file with commas: df.to_csv(path, index=False)"
        elif all(column.strip().isdecimal() for column in result) and _looks_like_data(names):
            raise _no_header(columns[missing], problem, names)
    raise InputError(columns[missing], problem, remedy)


def key_of(names: Iterable[str], column: str) -> str | None:
    """The name under which a table or row has a column, apart from surrounding blanks; None if it does not.

    >>> key_of([" text", "label"], "text")
    ' text'
    """
    return next((name for name in names if name.strip() == column.strip()), None)


def shown(names: Sequence[object]) -> str:
    """Names as a message quotes them: on one line, the first of many, each cut.

    >>> shown(["text", "a\\x1b[31m", 0])
    "'text', 'a\\\\x1b[31m', '0'"
    """
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(repr(str(name)[:SHOWN_LENGTH]) for name in names[:SHOWN]) + more


def listed(names: Sequence[str]) -> str:
    """Names in a sentence, the first of many.

    >>> listed(["a.csv", "b.csv", "c.csv"])
    'a.csv, b.csv and c.csv'
    """
    if len(names) > SHOWN:
        return f"{', '.join(names[:SHOWN])} and {len(names) - SHOWN} more"
    return " and ".join([", ".join(names[:-1])] * (len(names) > 1) + list(names[-1:]))


def _no_header(option: str, problem: str, names: Sequence[str]) -> InputError:
    return InputError(
        option,
        f"{problem}: the first line looks like data ({shown(names)})",
        "write the names of the columns into the first line",
    )


def _looks_like_data(cells: Sequence[str]) -> bool:
    """Whether the cells of a first line are hardly names: a number or a sentence is among them."""
    unnamed = [cell.strip() for cell in cells if cell.strip()]
    if unnamed == [str(i) for i in range(len(unnamed))]:  # the names that pandas gives to columns without names
        return False
    return any(NUMBER.fullmatch(cell) or len(cell) > SHOWN_LENGTH or cell.count(" ") > 3 for cell in unnamed)
