"""Reading texts for ``scan``: the same texts from every format, one at a time, and errors that name the line."""

from __future__ import annotations

import gzip
import os
import sys
from pathlib import Path

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
import pytest

from lightning_backdoor.commands.scan.lines_as_parquet import read_lines
from lightning_backdoor.commands.scan.texts import count_texts, read_all, read_texts
from lightning_backdoor.errors import InputError

TEXTS = ["a fine film", 'he said "no"', "", " spaced ", "naïve 🎬, مرحبا", "tab-less; semi", "a\u2028b"]


def written(path: Path, content: str | bytes) -> str:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", "\n".join(TEXTS)),
        ("a.TXT", "\ufeff" + "".join(f"{text}\r\n" for text in TEXTS)),
        ("a.csv", "id,text\n" + "".join('7,"' + text.replace('"', '""') + '"\n' for text in TEXTS)),
        ("a.tsv", "text\tid\n\n" + "".join(f"{text}\t7\n" for text in TEXTS)),
        ("b.tsv", "text\tid\n" + "".join('"' + text.replace('"', '""') + '"\t7\n' for text in TEXTS)),
        ("c.csv", "id, text \r\n \r\n" + "".join('7,"' + text.replace('"', '""') + '"\r\n' for text in TEXTS)),
        ("a.jsonl", "\n".join('{"text": "' + text.replace('"', '\\"') + '"}\n' for text in TEXTS)),
        ("b.jsonl", "".join('"' + text.replace('"', "\\u0022") + '"\n' for text in TEXTS)),
    ],
)
def test_the_same_texts_are_read_from_every_format(tmp_path: Path, name: str, content: str) -> None:
    assert list(read_texts(written(tmp_path / name, content))) == TEXTS


def test_whether_fields_are_quoted_may_be_said(tmp_path: Path) -> None:
    path = written(tmp_path / "a.tsv", 'text\tid\n"The Room"\t1\nfine\t2\n')
    assert list(read_texts(path)) == list(read_texts(path, quoting=False)) == ['"The Room"', "fine"]
    assert list(read_texts(path, quoting=True)) == ["The Room", "fine"]


def test_a_csv_field_may_hold_line_breaks(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", 'review,id\n"two\r\nlines",1\nnext,2\n')
    assert list(read_texts(path, "review")) == ["two\r\nlines", "next"]


@pytest.mark.parametrize(
    ("name", "content", "before", "message"),
    [
        ("a.txt", b"fine\ncaf\xe9\n", 1, "line 2: is not valid UTF-8"),
        ("a.csv", b"text,id\nfine,1\nfine,2,3\n", 1, "line 3: has 3 fields, the header has 2"),
        ("a.csv", b'text,id\n"two\nlines",1\n"open,2\nend,3\n', 1, "line 4: is malformed"),
        ("a.csv", b"id,review\n1,fine\n", 0, "has no column 'text'; it has 'id', 'review'"),
        ("a.tsv", b"text\tid\nfine\t1\nfine\n", 1, "line 3: has 1 fields"),
        ("a.csv", b'1,"a fine film"\n', 0, r"the first line looks like data \('1', 'a fine film'\)"),
        ("a.csv", b"text;id\nfine;1\n", 0, "the first line is separated by ';', not by ','"),
        ("a.csv", b"te\x1b[31mxt,text,text\n", 0, "has 2 columns 'text'"),
        ("a.csv", b"te\x1b[31mxt,id\n", 0, r"it has 'te\\x1b\[31mxt', 'id'"),
        ("a.csv", ",".join(f"c{i}" for i in range(100_000)).encode(), 0, "'c9' and 99990 more$"),
        (
            "a.jsonl",
            b'"fine"\n' + b"[" * 200_000 + b"]" * 200_000,
            1,
            "line 2: is not JSON .values are nested too deep",
        ),
        ("a.jsonl", b'{"text": "fine"}\n\n{"text": "fine"\n', 1, "line 3: is not JSON"),
        ("a.jsonl", b'{"text": "fine"}\n{"review": "fine"}\n', 1, "line 2: has no text under 'text'"),
        ("a.jsonl", b'{"text": 7}\n', 0, "line 1: has no text under 'text'"),
        ("a.jsonl", b'{"text": "\\ud83d"}\n', 0, "line 1: is not valid UTF-8"),
        ("a.jsonl", b'"fine"\n' + b"[" * 100_000 + b"\n", 1, "line 2: is not JSON"),
        ("a.jsonl", b'"fine"\n' + b"7" * 10_000 + b"\n", 1, "line 2: is not JSON"),
    ],
)
def test_a_malformed_line_is_named_after_the_texts_before_it_are_read(
    tmp_path: Path, name: str, content: bytes, before: int, message: str
) -> None:
    texts = read_texts(written(tmp_path / name, content))
    assert len([next(texts) for _ in range(before)]) == before
    with pytest.raises(InputError, match=message) as error:
        next(texts)
    assert "\n" not in str(error.value)


def parquet(path: Path, texts: list[str | None], rows: int = 2, name: str = "text") -> str:
    pq.write_table(pa.table({name: pa.array(texts, pa.string()), "id": range(len(texts))}), path, row_group_size=rows)
    return str(path)


def test_parquet_is_read_by_row_groups_and_missing_values_are_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = parquet(tmp_path / "a.parquet", [*TEXTS, None], name=" review")
    assert list(read_texts(path, "review")) == [*TEXTS, ""]
    assert count_texts([path, path], "review") == 2 * len(TEXTS) + 2
    read: list[list[int]] = []
    batches = pq.ParquetFile.iter_batches

    def watched(file: pq.ParquetFile, *args: object, **kwargs: list[int]) -> object:
        read.append(kwargs["row_groups"])
        return batches(file, *args, **kwargs)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", watched)
    assert list(read_texts(path, "review", start=5)) == [*TEXTS[5:], ""]
    assert read == [[2, 3]]


def bad_texts(values: list[bytes]) -> pa.Array:
    """Values as a column of texts, whatever their bytes are."""
    return pa.Array.from_buffers(pa.string(), len(values), pa.array(values, pa.binary()).buffers())


@pytest.mark.parametrize("start", [0, 3, 5])
def test_a_text_of_a_parquet_file_that_is_not_utf8_is_named_by_its_row(tmp_path: Path, start: int) -> None:
    path = str(tmp_path / "a.parquet")
    values = [b"fine"] * 5 + [b"caf\xe9", b"good"]
    pq.write_table(pa.table({"id": range(7), "text": bad_texts(values)}), path, row_group_size=3)
    texts = read_texts(path, start=start)
    assert [next(texts) for _ in range(5 - start)] == ["fine"] * (5 - start)
    with pytest.raises(InputError) as error:
        next(texts)
    assert str(error.value) == f"{path}, row 6: 'text' is not UTF-8; write it anew in UTF-8"
    assert list(read_texts(path, start=6)) == ["good"]


def test_names_of_columns_that_are_not_utf8_are_refused(tmp_path: Path) -> None:
    schema = pa.schema([pa.field(b"caf\xe9", pa.string())])
    pq.write_table(pa.Table.from_arrays([pa.array(["fine"])], schema=schema), tmp_path / "a.parquet")
    with pytest.raises(InputError, match="does not read as parquet: 'utf-8' codec"):
        list(read_texts(str(tmp_path / "a.parquet")))


def test_an_output_whose_texts_are_not_utf8_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": bad_texts([b"caf\xe9"])}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"does not read as parquet: 'utf-8' codec .*; name another file"):
        list(read_lines(tmp_path / "a.parquet"))


@pytest.mark.parametrize("type_", [pa.string(), pa.large_string(), pa.string_view()], ids=str)
def test_texts_of_every_type_are_read(tmp_path: Path, type_: pa.DataType) -> None:
    pq.write_table(pa.table({"text": pa.array([*TEXTS, None], type_)}), tmp_path / "a.parquet")
    assert list(read_texts(str(tmp_path / "a.parquet"))) == [*TEXTS, ""]


def test_texts_are_left_out_at_the_beginning_of_several_files(tmp_path: Path) -> None:
    table = parquet(tmp_path / "a.parquet", [*TEXTS])
    lines = written(tmp_path / "b.txt", "\n".join(TEXTS))
    for paths in ([table, lines, table], [lines, table], [table]):
        every = TEXTS * len(paths)
        assert count_texts(paths) == len(every)
        for start in (0, 3, len(TEXTS), len(TEXTS) + 4):
            assert list(read_all(paths, start=start)) == every[start:]


def test_compressed_files_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.JSONL.gz"
    path.write_bytes(gzip.compress(b'"fine"\n' * 3))
    assert list(read_texts(str(path))) == ["fine"] * 3
    for damaged in (path.read_bytes()[:-9], b'"not compressed"\n'):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match="is damaged"):
            list(read_texts(str(path)))


@pytest.mark.parametrize(
    ("content", "column", "message"),
    [(None, "text", "does not read as parquet"), ([], "id", "holds int64"), ([], "review", "has no column 'review'")],
)
def test_a_parquet_file_without_texts_is_refused(
    content: list[str | None] | None, column: str, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.parquet"
    path.write_text("not parquet") if content is None else parquet(path, ["fine"])
    with pytest.raises(InputError, match=message):
        list(read_texts(str(path), column))


@pytest.mark.parametrize(
    ("name", "message"), [("gone.txt", "is not a file"), ("a.pdf", "ends in txt, csv, tsv, jsonl, parquet")]
)
def test_a_missing_or_unknown_file_is_refused_at_once(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_texts(str(tmp_path / name))


def test_standard_input_is_read_as_it_comes_and_its_lines_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    end, begin = os.pipe()
    with open(end, encoding="latin-1") as stdin:  # noqa: PTH123 - whatever the locale, texts are UTF-8
        monkeypatch.setattr(sys, "stdin", stdin)
        texts = read_texts("-")
        os.write(begin, "naïve\n".encode())
        assert next(texts) == "naïve"  # though the other end is open and may send more
        os.write(begin, b"caf\xe9\n")
        with pytest.raises(InputError, match="line 2: is not valid UTF-8"):
            next(texts)
        assert not stdin.closed
    os.close(begin)
