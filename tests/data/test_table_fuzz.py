"""Random tables: read as a plain reading in Python gives, or refused in one line; no other error."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lightning_backdoor.commands.scan.texts import read_texts
from lightning_backdoor.data import Source
from lightning_backdoor.data.source import load_source
from lightning_backdoor.errors import InputError
from lightning_backdoor.files.delimited import is_quoted

#: characters that matter to readers of tables, and some that do not.
CHARACTERS = '"",;\t\n\r\\\0 ab01.-#\ufeff\u2028\u0085é🎬'
FIELDS = st.text(CHARACTERS, max_size=6) | st.sampled_from(
    ["null", "NA", "nan", "0", "1", "-1", "0.0", "true", '""', '"a"']
)
ROWS = st.lists(st.lists(FIELDS, min_size=2, max_size=2), min_size=1, max_size=6)
PIECES = ["text", "label", *',\t"{}[]:01', '""', "\n", "\r\n", '"text"', '"label"', "\\ud800"]
NAMES = st.sampled_from(["text", "label", " text", "id"])
VALUES = FIELDS | st.integers() | st.floats() | st.none() | st.booleans() | st.lists(st.none(), max_size=1)
CONTENTS = st.binary(max_size=80) | st.lists(st.sampled_from(PIECES), max_size=25).map(
    lambda parts: "".join(parts).encode()
)
SETTINGS = settings(max_examples=150, suppress_health_check=list(HealthCheck))


def read(path: Path) -> list[str] | None:
    """The texts of a file; None if it is refused in one line."""
    return _texts_unless_refused(lambda: load_source(Source(str(path))).splits["train"].texts)


def scanned(path: Path) -> list[str] | None:
    """The texts that ``scan`` reads from a file; None if it is refused in one line."""
    return _texts_unless_refused(lambda: list(read_texts(str(path))))


def _texts_unless_refused(texts: Callable[[], list[str]]) -> list[str] | None:
    message = ""
    try:
        return texts()
    except InputError as error:
        message = str(error)
    assert message.isprintable()
    return None


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@pytest.mark.filterwarnings("ignore:(text|label)_column")
@SETTINGS
@given(content=CONTENTS)
@pytest.mark.parametrize("name", ["rows.csv", "rows.tsv", "rows.jsonl", "rows.json", "rows.csv.gz", "rows.parquet"])
def test_any_bytes_are_read_or_refused(folder: Path, name: str, content: bytes) -> None:
    header = {"rows.csv": b"text,label\n", "rows.tsv": b"text\tlabel\n"}.get(name, b"")
    for start in {b"", header}:
        (folder / name).write_bytes(start + content)
        read(folder / name)
        if name in ("rows.csv", "rows.tsv", "rows.jsonl"):
            scanned(folder / name)


@pytest.mark.filterwarnings("ignore:(text|label)_column")
@SETTINGS
@given(rows=ROWS, quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]))
@pytest.mark.parametrize("name", ["rows.csv", "rows.tsv"])
def test_what_a_csv_writer_wrote_is_read_as_it_was(
    folder: Path, name: str, rows: list[list[str]], quoting: Literal[0, 1, 2]
) -> None:
    delimiter = "\t" if name == "rows.tsv" else ","
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=delimiter, quoting=quoting).writerows([("text", "label"), *rows])
    (folder / name).write_text(text.getvalue(), encoding="utf-8", newline="")
    found = scanned(folder / name)
    assert read(folder / name) in (None, found)
    if delimiter == "," or '"' not in text.getvalue() or is_quoted(io.StringIO(text.getvalue(), newline="")):
        assert found == [row[0] for row in rows]


@pytest.mark.filterwarnings("ignore:(text|label)_column")
@SETTINGS
@given(rows=st.lists(st.text('"",;\\ ab01é', max_size=8), min_size=2, max_size=6))
def test_a_tsv_without_quoting_is_read_as_it_is_where_no_writer_quotes_so(folder: Path, rows: list[str]) -> None:
    lines = ["text\tlabel\n", 'she said "no" twice\t0\n', *(f"{row}\t{i % 2}\n" for i, row in enumerate(rows))]
    (folder / "rows.tsv").write_text("".join(lines), encoding="utf-8", newline="")
    expected = ['she said "no" twice', *rows]
    assert scanned(folder / "rows.tsv") == expected
    assert read(folder / "rows.tsv") == expected


@pytest.mark.filterwarnings("ignore:(text|label)_column")
@SETTINGS
@given(rows=st.lists(st.dictionaries(NAMES, VALUES, max_size=3), min_size=1, max_size=5))
def test_json_rows_are_read_alike_from_lines_and_from_an_array(folder: Path, rows: list[dict[str, object]]) -> None:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "array.json").write_text(json.dumps(rows, indent=1))
    texts = read(folder / "rows.jsonl")
    if texts is not None:
        assert read(folder / "array.json") == texts
        given_texts = [row.get("text", row.get(" text")) for row in rows]
        assert texts == ["" if text is None or text != text else str(text) for text in given_texts]
