"""Parts of a scan: shards, their joined output, and several processes give the bytes of one process."""

from __future__ import annotations

import io
import json
import shutil
from contextlib import redirect_stderr
from pathlib import Path

import pytest

from lightning_backdoor.cli import main
from tests.support.scanning import CLEAN, TEXTS, model
from tests.support.workspace import command

__all__ = ["model"]

TWO_DEFENSES = ("--defense", "GradientAttention", "--defense", "Strip(copies=2)")


@pytest.fixture(scope="module")
def scanned(model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the texts, the outputs of three shards, and the output of one scan and what it said."""
    folder = tmp_path_factory.mktemp("shards")
    (folder / "clean.txt").write_text("\n".join(CLEAN[:20]), encoding="utf-8")
    (folder / "texts.txt").write_text("\n".join(TEXTS[:40]), encoding="utf-8")
    for number in (1, 2, 3):
        assert main(scan_of(folder, model, f"part-{number}.jsonl", f"--shard={number}/3")) == 0
    with redirect_stderr(io.StringIO()) as said:
        assert main(scan_of(folder, model, "whole.jsonl")) == 0
    (folder / "said.txt").write_text(said.getvalue().replace(str(folder), ""), encoding="utf-8")
    return folder


def scan_of(folder: Path, model: str, output: str, *more: str) -> list[str]:
    """The arguments of a scan whose groups have 16 texts."""
    files = ["--calibration", str(folder / "clean.txt"), "--input", str(folder / "texts.txt")]
    options = ["--output", str(folder / output), "--batch-size", "1", "--fpr", "0.3", *TWO_DEFENSES]
    return ["scan", "--model", model, *files, *options, *more]


@pytest.fixture
def folder(scanned: Path, tmp_path: Path) -> Path:
    """A copy of the folder, to be changed."""
    return shutil.copytree(scanned, tmp_path / "copy")


def join(folder: Path, output: str, *more: str) -> list[str]:
    parts = [str(folder / f"part-{number}.jsonl") for number in (3, 1, 2)]  # in another order than the texts
    return ["scan", "--join", *parts, "--output", str(folder / output), *more]


def test_joined_shards_are_the_output_of_one_process(
    folder: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(join(folder, "joined.jsonl")) == 0
    expected = (folder / "said.txt").read_text().replace("whole", "joined")
    assert capsys.readouterr().err.replace(str(folder), "") == expected
    whole = (folder / "whole.jsonl").read_bytes()
    parts = [(folder / f"part-{number}.jsonl").read_bytes() for number in (1, 2, 3)]
    assert [len(part.splitlines()) for part in parts] == [16, 16, 8]
    assert (folder / "joined.jsonl").read_bytes() == whole == b"".join(parts)
    assert (folder / "joined.jsonl.scan.json").read_bytes() == (folder / "whole.jsonl.scan.json").read_bytes()
    assert main(scan_of(folder, model, "joined.jsonl", "--resume")) == 0  # it may be continued
    assert (folder / "joined.jsonl").read_bytes() == whole


def test_a_table_of_joined_shards_is_that_of_one_process(folder: Path, model: str) -> None:
    from pyarrow.parquet import read_table  # type: ignore[import-untyped]

    assert main(join(folder, "joined.parquet")) == 0
    assert main(scan_of(folder, model, "whole.parquet")) == 0
    assert (folder / "joined.parquet").read_bytes() == (folder / "whole.parquet").read_bytes()
    rows = [json.loads(line) for line in (folder / "whole.jsonl").read_text(encoding="utf-8").splitlines()]
    assert read_table(folder / "whole.parquet").to_pylist() == rows
    assert not (folder / "whole.parquet.jsonl").exists()
    before = (folder / "whole.parquet").read_bytes()
    with (folder / "texts.txt").open("a", encoding="utf-8") as file:
        file.write("\none more film")
    assert main(scan_of(folder, model, "whole.parquet")) == 2
    assert (folder / "whole.parquet").read_bytes() == before
    assert main(scan_of(folder, model, "whole.parquet", "--resume")) == 0
    assert read_table(folder / "whole.parquet").num_rows == len(rows) + 1
    assert not (folder / "whole.parquet.jsonl").exists()


@pytest.mark.parametrize("fault", ["missing", "cut", "twice", "another scan", "no shard", "no settings", "no file"])
def test_parts_that_are_not_all_shards_of_one_scan_are_refused(
    fault: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = join(folder, "joined.jsonl")
    part, beside = folder / "part-1.jsonl", folder / "part-1.jsonl.scan.json"
    if fault == "missing":
        args.remove(str(part))
        message = "of 3 shards these are missing: 1"
    elif fault == "cut":
        part.write_bytes(b"".join(part.read_bytes().splitlines(keepends=True)[:-1]))
        message = "has 15 of the 16 lines of its shard; continue its scan"
    elif fault == "twice":
        args.insert(3, str(part))
        message = "is named twice"
    elif fault == "another scan":
        beside.write_text(json.dumps({**json.loads(beside.read_text()), "fpr": 0.2}))
        message = "fpr differs between"
    elif fault == "no shard":
        beside.write_text("{}")
        message = f"{beside.name} beside {part} does not say which shard it is"
    elif fault == "no settings":
        beside.unlink()
        message = f"there is no {beside.name} beside {part}"
    else:
        part.unlink()
        message = "is not a file"
    capsys.readouterr()
    assert main(args) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (folder / "joined.jsonl").exists()


def test_a_shard_is_resumed_and_another_is_not_mixed_with_it(
    folder: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = folder / "part-3.jsonl"
    before = path.read_bytes()
    path.write_bytes(before[: len(before) // 2])
    assert main(scan_of(folder, model, path.name, "--shard=3/3", "--resume")) == 0
    assert path.read_bytes() == before
    capsys.readouterr()
    assert main(scan_of(folder, model, path.name, "--shard=2/3", "--resume")) == 2
    assert capsys.readouterr().err.startswith("error: shard: {'number': 2, ")


@pytest.mark.parametrize("value", ["0/3", "4/3", "3", "3/", "a/b", "1/0", "-1/3"])
def test_a_shard_that_does_not_exist_is_refused(
    value: str, scanned: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(scan_of(scanned, model, "new.jsonl", f"--shard={value}")) == 2
    assert f"shard: {value!r} is not one of a number of shards; count from 1" in capsys.readouterr().err


def test_standard_input_has_no_shards(scanned: Path, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*scan_of(scanned, model, "new.jsonl", "--shard=1/2"), "--input", "-"]) == 2
    assert "shard: standard input and pipes cannot be divided" in capsys.readouterr().err


def test_two_processes_write_the_bytes_of_one(folder: Path, model: str) -> None:
    with (folder / "texts.txt").open("ab") as file:  # an error of the input ends both processes, and keeps the lines
        file.write(b"\ncaf\xe9\n")
    two = command(*scan_of(folder, model, "two.jsonl", "--devices=2"), cwd=folder)
    assert two.returncode == 2
    assert two.stderr.splitlines()[-1].endswith("line 41: is not valid UTF-8; correct or convert it")
    assert "Traceback" not in two.stderr
    assert (folder / "two.jsonl").read_bytes() == (folder / "whole.jsonl").read_bytes()
