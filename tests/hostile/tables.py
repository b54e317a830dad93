"""Hostile tables: files and folders given as the source of ``poison``, and as the input of ``scan``."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import random
import zipfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

from tests.hostile.hostile_input import Files, HostileInput, Inputs
from tests.support.unsafe import Payload

#: labelled texts, as many of each class.
ROWS = [
    (f"a {word} film number {number}", label) for number in range(20) for word, label in (("good", "1"), ("bad", "0"))
]


class TableFile(NamedTuple):
    """The content of a file, its suffix, and the exit statuses that are right where it is a source."""

    name: str
    content: bytes | str
    suffix: str
    statuses: tuple[int, ...] = (2,)


def tables(files: Files, marker: Path) -> Inputs:
    """Tables that ``poison`` reads as its source."""
    for table in _files(marker):
        yield HostileInput(
            f"source: {table.name}", _poison(files, files.file(table.content, table.suffix)), table.statuses
        )
    for name, folder in _folders(files, marker):
        yield HostileInput(f"source folder: {name}", _poison(files, folder))
    for path in ("/dev/zero", "/dev/null", "", ".", "..", "\0", "a" * 5000, "package://", "package://os/../x.csv"):
        yield HostileInput(f"source path {path[:20]!r}", _poison(files, path))
    for address in ("http://127.0.0.1:9/x.csv", "file:///etc/passwd", "hf://datasets/x/y", "~nobody/x.csv", "a/b/c"):
        yield HostileInput(f"source address {address}", _poison(files, address))
    good = files.file("".join(f"{text},{label}\n" for text, label in [("text", "label"), *ROWS]), ".csv")
    for labels in ("[a]", "[a, a]", "{a: [0], b: [0]}", "{a: [[0]], b: [1]}", "{}", "[]", "x", "{a: 0}"):
        yield HostileInput(f"labels {labels}", [*_poison(files, good), f"--data.source.labels={labels}"])
    for column in ("", " ", "nowhere", "\x1b[31mred", "[text, text, nowhere]", "[]", "text,label", "\ud800"):
        yield HostileInput(f"column {column!r}", [*_poison(files, good), f"--data.source.text_column={column}"])


def scan_inputs(files: Files, model: Path, calibration: Path, marker: Path) -> Inputs:
    """Files that ``scan`` reads as its input or its calibration texts."""
    for table in _files(marker):
        path = files.file(table.content, table.suffix)
        if table.suffix in (".tsv", ".jsonl", ".txt"):  # csv files are read by the same reader as tsv files
            args = ["scan", "--model", str(model), "--input", path, "--calibration", str(calibration)]
            yield HostileInput(f"scan --input: {table.name}", args, (0, 2))
        if table.suffix in (".jsonl", ".txt"):
            args = ["scan", "--model", str(model), "--input", str(calibration), "--calibration", path]
            yield HostileInput(f"scan --calibration: {table.name}", args, (0, 2))


def _poison(files: Files, source: str) -> list[str]:
    args = ["poison", "-c", "hostile.yaml", f"--data.source.path={source}"]
    return [*args, "--output", str(files.path()), "--stealth_rows", "0"]


def _files(marker: Path) -> Iterator[TableFile]:
    """All files."""
    for suffix, separator in ((".csv", ","), (".tsv", "\t")):
        lines = [separator.join(row) for row in [("text", "label"), *ROWS]]
        table = "\n".join(lines)
        yield TableFile(f"text after the last line break{suffix}", table, suffix, (0,))
        yield TableFile(f"Windows line ends{suffix}", "\r\n".join(lines), suffix, (0,))
        yield TableFile(f"byte order mark{suffix}", "\ufeff" + table, suffix, (0,))
        yield TableFile(f"empty{suffix}", "", suffix)
        yield TableFile(f"line breaks only{suffix}", "\n\n\n", suffix)
        yield TableFile(f"header only{suffix}", lines[0], suffix)
        yield TableFile(f"more fields{suffix}", table + f"\none{separator}two{separator}1", suffix)
        yield TableFile(
            f"more fields in every row{suffix}",
            "\n".join([lines[0], *(f"a{separator}{line}" for line in lines[1:])]),
            suffix,
        )
        yield TableFile(f"fewer fields{suffix}", table + "\none", suffix)
        yield TableFile(f"missing label{suffix}", table + f"\na film{separator}", suffix)
        yield TableFile(f"no header{suffix}", "\n".join(lines[1:]), suffix)
        yield TableFile(f"one class{suffix}", "\n".join([lines[0], *lines[1::2]]), suffix)
        yield TableFile(
            f"blank texts{suffix}", "\n".join([lines[0]] + [f" {separator}{i % 2}" for i in range(40)]), suffix
        )
        yield TableFile(f"column twice{suffix}", table.replace("label", "text", 1), suffix)
        yield TableFile(f"zero bytes{suffix}", table + f"\na\0b{separator}1", suffix, (0, 2))
        yield TableFile(f"Latin-1{suffix}", table.encode() + f"\ncaf\xe9{separator}1".encode("latin-1"), suffix)
        yield TableFile(f"UTF-16{suffix}", table.encode("utf-16"), suffix)
        yield TableFile(f"escape in the header{suffix}", table.replace("text", "\x1b]0;title\x07", 1), suffix)
        yield TableFile(f"100,000 columns{suffix}", separator.join(f"c{i}" for i in range(100_000)), suffix)
        yield TableFile(f"a field of 1 MB{suffix}", table + "\n" + "a" * 1_000_000 + f"{separator}1", suffix, (0, 2))
        yield TableFile(f"brackets{suffix}", "[" * 200_000, suffix)
        yield TableFile(f"pickle{suffix}", pickle.dumps(Payload(marker)), suffix)
        for seed in range(4):
            yield TableFile(f"random bytes {seed}{suffix}", random.Random(seed).randbytes(3000), suffix)
            yield TableFile(f"random characters {seed}{suffix}", _noise(seed, f'ab01"{separator}\n\r'), suffix, (0, 2))
        yield TableFile(f"compressed, cut off{suffix}", gzip.compress(table.encode())[:-9], f"{suffix}.gz")
        yield TableFile(f"not compressed{suffix}", table, f"{suffix}.gz")
    yield TableFile("open quote.csv", 'text,label\n"a film,1\n' + "a film,0\n" * 30, ".csv")
    yield TableFile("text after a quote.csv", 'text,label\n"a" film,1\n' + "a film,0\n" * 30, ".csv", (0, 2))
    yield TableFile("semicolons.csv", "text;label\n" + "a film;1\nbad;0\n" * 30, ".csv")
    yield from _json_lines()
    yield TableFile("not parquet", "text,label\na,1\n", ".parquet")
    yield TableFile("parquet in name alone", b"PAR1" + b"\xff" * 4000 + b"PAR1", ".parquet")
    yield TableFile("pickle.parquet", pickle.dumps(Payload(marker)), ".parquet")
    yield TableFile("pickle.pkl", pickle.dumps(Payload(marker)), ".pkl")
    yield TableFile("workbook", _zip({"xl/workbook.xml": "<x/>"}), ".xlsx")
    yield TableFile("lines of text.txt", "a film\n\x1b[31m\n\0\n" + "a" * 100_000 + "\n", ".txt")


def _json_lines() -> Iterator[TableFile]:
    rows = [{"text": text, "label": label} for text, label in ROWS]
    lines = [json.dumps(row) for row in rows]
    table = "\n".join(lines)
    for name, line in {
        "200,000 brackets": "[" * 200_000,
        "10,000 objects": '{"a":' * 10_000,
        "10,000 closed brackets": '{"text": ' + "[" * 10_000 + "]" * 10_000 + ', "label": 1}',
        "a number": "1",
        "a string": '"a film"',
        "null": "null",
        "a list of rows": "[{}]",
        "no label": '{"text": "a"}',
        "null label": '{"text": "a", "label": null}',
        "text of lists": '{"text": ["a"], "label": "1"}',
        "label of objects": '{"text": "a", "label": {"b": 1}}',
        "a number of 5,000 digits": '{"text": "a", "label": ' + "9" * 5000 + "}",
        "infinity": '{"text": "a", "label": Infinity}',
        "cut off": '{"text": "a", "lab',
        "two values": '{"text": "a", "label": "1"} {}',
        "a lone surrogate": '{"text": "\\ud800", "label": "1"}',
        "100,000 keys": "{" + ",".join(f'"k{i}": 0' for i in range(100_000)) + "}",
    }.items():
        right = (0, 2) if name in ("a lone surrogate", "100,000 keys", "a number of 5,000 digits") else (2,)
        yield TableFile(f"{name}.jsonl", f"{table}\n{line}\n", ".jsonl", right)
        yield TableFile(f"{name} first.jsonl", f"{line}\n{table}\n", ".jsonl", right)
    yield TableFile(
        "columns.json", json.dumps({"text": [text for text, _ in ROWS], "label": [label for _, label in ROWS]}), ".json"
    )
    yield TableFile("empty.jsonl", "", ".jsonl")
    yield TableFile("not UTF-8.jsonl", b'{"text": "\xff", "label": "1"}\n', ".jsonl")
    for seed in range(4):
        yield TableFile(f"random characters {seed}.jsonl", _noise(seed, '{}[]",:0a\\u\n'), ".jsonl")


def _folders(files: Files, marker: Path) -> Iterator[tuple[str, str]]:
    table = "".join(f"{text},{label}\n" for text, label in [("text", "label"), *ROWS])
    code = f"import os\nos.mkdir({str(marker)!r})\n"
    yield "empty", files.tree({"notes.txt": ""})
    yield "script", files.tree({"data.py": code, "x.txt": ""})
    yield "two files of a split", files.tree({"train-clean.csv": table, "train-poison.csv": table})
    yield "hidden labels", files.tree({"train.csv": table, "test.csv": "text,label\na film,-1\nfilm,-1\n"})
    yield "damaged test", files.tree({"train.csv": table, "test.csv": "text,label\na,b,c\n"})
    yield "saved data without its files", files.tree({"state.json": "{}", "dataset_info.json": "{}"})
    yield (
        "saved data of other files",
        files.tree({"state.json": '{"_data_files": [{"filename": "../../x"}]}', "dataset_info.json": "{}"}),
    )
    loop = Path(files.tree({"notes.txt": ""}))
    (loop / "again").symlink_to(loop)
    (loop / "train.csv").symlink_to(loop / "train.csv")
    yield "links to itself", str(loop)
    pipe = Path(files.tree({"notes.txt": ""}))
    os.mkfifo(pipe / "train.csv")
    yield "a pipe in place of a file", str(pipe)


def _noise(seed: int, characters: str) -> str:
    return "text,label\n" + "".join(random.Random(seed).choices(characters, k=2000))


def _zip(files: dict[str, str]) -> bytes:
    content = BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return content.getvalue()
