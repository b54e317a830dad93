"""Tables: strict reading, the wanted columns alone, and the message that helps where a column is missing."""

from __future__ import annotations

import csv
import json
import time
from pathlib import Path
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
import pytest
from datasets import Dataset

from lightning_backdoor.data import Source
from lightning_backdoor.data.source import load_source
from lightning_backdoor.data.tables import column_names
from lightning_backdoor.errors import InputError
from tests.data.test_source import error


def written(path: Path, content: str | bytes) -> str:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def texts(path: str, **options: Any) -> list[str]:
    return load_source(Source(path, **options)).splits["train"].texts


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("start", ["", "\ufeff", "\n \n"])
def test_line_ends_marks_and_blank_lines_are_not_part_of_rows(tmp_path: Path, end: str, start: str) -> None:
    lines = [start.replace("\n", end) + "text,label", "a\0b # c,0", "", "   ", '"1,000",1', "null,1"]
    assert texts(written(tmp_path / "rows.csv", end.join(lines))) == ["a\0b # c", "1,000", "null"]


def test_other_columns_may_hold_anything(tmp_path: Path) -> None:
    rows: list[list[Any]] = [
        ["id", "text", "label"],
        *([i, f"text {i}", i % 2] for i in range(20_000)),
        ["x", "last", 1],
    ]
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    assert texts(str(tmp_path / "rows.csv"))[-1] == "last"
    lines = [{"text": "a", "label": 0, "id": 1}, {"label": 1, "id": {"x": []}, "text": 7}, {" text": 0.5, "label": 1}]
    assert texts(written(tmp_path / "rows.jsonl", "\n".join(map(json.dumps, lines)))) == ["a", "7", "0.5"]


@pytest.mark.parametrize(
    ("row", "fields"), [("c,d,1", 3), ("c", 1), (",c,1", 3), ("c,1,", 3), ('"c,d",1,', 3), ('"c\nd"', 1)]
)
def test_a_row_of_another_length_is_refused_by_its_line(tmp_path: Path, row: str, fields: int) -> None:
    path = written(tmp_path / "rows.csv", f'text,label\n"a\n\nb",0\n\n{row}\nc,1\n')
    assert (
        error(Source(path)) == f"{path}, line 6: has {fields} fields, the header has 2; correct the line or the header"
    )


@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl", "rows.json"])
def test_a_column_whose_texts_are_missing_is_said(tmp_path: Path, name: str) -> None:
    rows: list[dict[str, Any]] = [{"text": None, "label": 0}, {"text": "b", "label": 1}, {"text": "", "label": 1}]
    content = "\n".join(map(json.dumps, rows)) if name == "rows.jsonl" else json.dumps(rows)
    path = written(tmp_path / name, "text,label\n,0\nb,1\n,1\n" if name == "rows.csv" else content)
    with pytest.warns(UserWarning, match="text_column: 'text' is null or empty in 2 of 3 rows of train"):
        assert texts(path) == ["", "b", ""]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.csv", "text;label\na;0\n", "the first line is separated by ';', not by ','; write the file with commas"),
        ("rows.csv", "text|label\na|0\n", "the first line is separated by '|', not by ','"),
        ("rows.csv", "text\tlabel\na\t0\n", r"the first line is separated by '\t', not by ','"),
        ("rows.tsv", "text,label\na,0\n", r"the first line is separated by ',', not by '\t'"),
        ("rows.csv", "1,a film,good\n0,a book,bad\n", "the first line looks like data ('1', 'a film', 'good')"),
        ("rows.tsv", "a warm and funny film\tpos\n", "the first line looks like data ('a warm and funny film', 'pos')"),
        ("rows.csv", ",0,1\n0,a,1\n", "no column 'text'; it has '', '0', '1'"),
        ("rows.csv", 'text, label\n"a", "0"\n"b", "1"\n', "all fields of 'label' in rows.csv have a blank before"),
        ("rows.csv", "review,label\na,1\n", "no column 'text'; it has 'review', 'label'"),
        ("rows.csv", "text,label,text\na,1,b\n", "has 2 columns 'text'; rename one of them"),
        ("rows.csv", "a\x1b[31m\x07\u202e,\u2028b\na,1\n", r"it has 'a\x1b[31m\x07\u202e', '\u2028b'"),
        ("rows.jsonl", '{"a\\ud800\\u001b": 1}', r"it has 'a\ud800\x1b'"),
        ("rows.csv", ",".join(f"c{i}" for i in range(100_000)) + "\n", "'c9' and 99990 more"),
        ("rows.jsonl", json.dumps({f"c{i}": 0 for i in range(100_000)}), "'c9' and 99990 more"),
        ("rows.jsonl", "[" * 200_000, "line 1: is not JSON (values are nested too deep)"),
        ("rows.json", "\n" + "[" * 200_000 + "]" * 200_000, "line 2: is not JSON (values are nested too deep)"),
        ("rows.jsonl", '{"text": ' * 10_000, "line 1: is not JSON (values are nested too deep)"),
        ("rows.jsonl", '{"text": "a", "label": 0, "x": ' + "[" * 10_000 + "]" * 10_000 + "}", "nested too deep"),
        ("rows.json", '{"text": {"0": "a"}, "label": {"0": 1}}', "one object, not one row per line; write one row"),
        ("rows.json", '{"columns": ["text"], "data": [["a"]]}', 'df.to_json(path, orient="records", lines=True)'),
        ("rows.json", '{\n "text": {\n  "0": "a"\n }\n}', "one object, not one row per line; write one row"),
        ("rows.json", '[["a", 0]]', "row 1: is not an object; write one row per line"),
    ],
)
def test_what_is_not_a_table_with_these_columns_is_told_apart_at_once(
    tmp_path: Path, name: str, content: str, message: str
) -> None:
    path = written(tmp_path / name, content)
    start = time.process_time()
    problem = error(Source(path))
    assert time.process_time() - start < 2
    assert message in problem
    assert problem.isprintable()
    assert len(problem) < 1000


@pytest.mark.parametrize(("header", "columns"), [("0,a film", 1), ("0,a film,0", 0), ("1,it,a film", 3)])
def test_numbers_are_no_columns_of_a_file_without_a_header(tmp_path: Path, header: str, columns: int) -> None:
    path = written(tmp_path / "rows.csv", f"{header}\n0,b,1\n")
    assert "the first line looks like data" in error(Source(path, text_column=columns, label_column=columns - 1))


def test_a_first_line_with_the_named_columns_is_never_taken_for_data(tmp_path: Path) -> None:
    path = written(tmp_path / "rows.csv", "1,what do you think of this film\n0,a\n1,b\n")
    assert texts(path, text_column="what do you think of this film", label_column=1) == ["a", "b"]


@pytest.mark.parametrize("name", ["rows.csv", "rows.tsv", "rows.jsonl"])
def test_names_compare_without_surrounding_blanks(tmp_path: Path, name: str) -> None:
    rows = [(" text", "label "), ("a ", 0), (" b", 1)]
    with (tmp_path / name).open("w", newline="") as file:
        if name == "rows.jsonl":
            file.writelines(json.dumps(dict(zip(rows[0], row, strict=True))) + "\n" for row in rows[1:])
        else:
            csv.writer(file, delimiter="\t" if name == "rows.tsv" else ",").writerows(rows)
    assert texts(str(tmp_path / name), text_column="text ") == ["a ", " b"]


@pytest.mark.parametrize("column", ["text", "label"])
@pytest.mark.parametrize("saved", [False, True])
def test_a_table_without_lines_that_is_not_utf8_names_the_row(tmp_path: Path, column: str, saved: bool) -> None:
    values = pa.array([b"fine", b"caf\xe9", b"good"], pa.binary())
    bad = pa.Array.from_buffers(pa.string(), len(values), values.buffers())
    table, path = pa.table({"text": list("abc"), "label": list("xyx"), column: bad}), str(tmp_path / "rows.parquet")
    if saved:
        Dataset(table).save_to_disk(path)
    else:
        pq.write_table(table, path)
    name = f"train of {path}" if saved else path
    assert error(Source(path)) == f"{name}, row 2: {column!r} is not UTF-8; write it anew in UTF-8"


def test_names_of_columns_that_are_not_utf8_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    schema = pa.schema([pa.field(b"caf\xe9", pa.string())])
    pq.write_table(pa.Table.from_arrays([pa.array(["fine"])], schema=schema), path)
    problem = "path: rows.parquet has columns whose names are not UTF-8; write it anew"
    assert error(Source(str(path))) == problem
    with pytest.raises(InputError) as caught:
        column_names(path)
    assert str(caught.value) == problem


def test_texts_of_several_columns_are_joined(tmp_path: Path) -> None:
    path = written(tmp_path / "rows.csv", "title,body,label\nA,long,0\n,short,1\n")
    assert texts(path, text_column=["title", "body"]) == ["A long", "short"]
    assert texts(path, text_column=["body", "title"], joined_by=" | ") == ["long | A", "short"]
    assert "has no column 'summary'" in error(Source(path, text_column=["title", "summary"]))
    assert "text_column: 'body' and 'body ' names a column twice" in error(Source(path, text_column=["body", "body "]))


def test_labels_are_no_texts(tmp_path: Path) -> None:
    path = written(tmp_path / "rows.csv", "text,label\na,0\nb,1\n")
    assert "'label' is a column of the texts too" in error(Source(path, text_column="label"))
    assert "'label' is a column of the texts too" in error(Source(path, text_column=["text", "label"]))


def test_the_separator_of_no_tokenizer_joins_nothing(tmp_path: Path) -> None:
    path = written(tmp_path / "rows.csv", "title,body,label\nA,long,0\nB,short,1\n")
    source = Source(path, text_column=["title", "body"], joined_by="separator")
    assert "joined_by: 'separator' stands for the separator of a tokenizer" in error(source)
    assert texts(path, text_column=["title", "body"], joined_by=" </s> ") == ["A </s> long", "B </s> short"]
