"""The lines of a scan as a parquet file, and back: the same lines give the same file, whichever process wrote it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]
from pyarrow.parquet import ParquetFile, ParquetWriter  # type: ignore[import-untyped]

from lightning_backdoor.errors import InputError, reason

#: number of lines in a row group, which is held in memory.
ROWS = 4096


def write_parquet(lines: Iterable[bytes], path: Path, defenses: Sequence[str]) -> None:
    """Writes the lines of a scan as a parquet file with a column per field.

    Args:
        lines: the lines.
        path: the file, which is replaced in one step.
        defenses: names of the defenses; each of several has a column of its own.
    """
    waiting = iter(lines)
    first = list(islice(waiting, 1))
    schema = _schema(defenses, json.loads(first[0]) if first else {})
    partial = path.with_name(f".{path.name}.partial")
    waiting = chain(first, waiting)
    with ParquetWriter(partial, schema) as writer:
        while group := list(islice(waiting, ROWS)):
            writer.write_table(pa.Table.from_pylist([json.loads(line) for line in group], schema))
    partial.replace(path)


def read_lines(path: Path) -> Iterator[bytes]:
    """Yields the lines that :func:`write_parquet` was given.

    Raises:
        InputError: the file is damaged.
    """
    try:
        with ParquetFile(path) as file:
            for batch in file.iter_batches(ROWS):
                for row in batch.to_pylist():
                    yield (json.dumps(row, ensure_ascii=False) + "\n").encode()
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(str(path), f"does not read as parquet: {reason(error)}", "name another file") from None


def _schema(defenses: Sequence[str], line: dict[str, Any]) -> Any:
    """The columns; ``line`` is a line, which says which defenses have studied the set."""
    number, text, flag = pa.float64(), pa.string(), pa.bool_()
    token = pa.struct([("token", text), ("start", pa.int32()), ("end", pa.int32()), ("score", number)])
    after = [("purified_text", text), ("purified_prediction", text), ("tokens", pa.list_(token))]

    def result(of: dict[str, Any]) -> list[tuple[str, Any]]:
        alone = [("flagged_alone", flag)] if "flagged_alone" in of else []
        return [("anomaly_score", number), ("flagged", flag), *alone, *after]

    of_defenses = [("flagged", flag), *((name, pa.struct(result(line.get(name, {})))) for name in defenses)]
    fields = result(line) if len(defenses) == 1 else of_defenses
    return pa.schema([("text", text), ("prediction", text), ("logits", pa.list_(number)), *fields])
