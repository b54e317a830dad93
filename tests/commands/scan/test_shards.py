"""Parts of a scan: shards, their joined output, and several processes give the bytes of one process."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from lightning_backdoor.cli import main
from lightning_backdoor.commands.scan.run import BATCHES_AHEAD
from tests.support.scanning import TEXTS, model, scan
from tests.support.workspace import command, workspace

__all__ = ["model", "scan", "workspace"]

TWO_DEFENSES = ("--defense", "GradientAttention", "--defense", "Strip(copies=2)")


@pytest.fixture
def parts(scan: Callable[..., list[str]], tmp_path: Path) -> list[Path]:
    """The outputs of three shards, in another order than that of the texts."""
    paths = {}
    for number in (1, 2, 3):
        paths[number] = tmp_path / f"part-{number}.jsonl"
        assert main(scan(*TWO_DEFENSES, batch_size=1, shard=f"{number}/3", output=paths[number])) == 0
    return [paths[3], paths[1], paths[2]]


def test_joined_shards_are_the_output_of_one_process(
    parts: list[Path], scan: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, joined = tmp_path / "whole.jsonl", tmp_path / "joined.jsonl"
    capsys.readouterr()
    assert main(scan(*TWO_DEFENSES, batch_size=1, output=whole)) == 0
    said = capsys.readouterr().err
    assert main(["scan", "--join", *map(str, parts), "--output", str(joined)]) == 0
    assert capsys.readouterr().err == said.replace("whole", "joined")
    assert joined.read_bytes() == whole.read_bytes() == b"".join(part.read_bytes() for part in sorted(parts))
    beside = [path.with_name(f"{path.name}.scan.json").read_text() for path in (whole, joined)]
    assert beside[0] == beside[1]
    assert main(scan(*TWO_DEFENSES, batch_size=1, output=joined, resume=True)) == 0  # it may be continued
    for folder in (whole, joined):
        table = folder.with_suffix(".parquet")
        source = ["--join", *map(str, parts)] if folder is joined else []
        arguments = ["scan", *source, "--output", str(table)] if source else None
        assert main(arguments or scan(*TWO_DEFENSES, batch_size=1, output=table)) == 0
    assert (tmp_path / "whole.parquet").read_bytes() == (tmp_path / "joined.parquet").read_bytes()


@pytest.mark.parametrize("fault", ["missing", "cut", "twice", "another scan", "no shard", "no file"])
def test_parts_that_are_not_all_shards_of_one_scan_are_refused(
    fault: str,
    parts: list[Path],
    scan: Callable[..., list[str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    messages = {
        "missing": "of 3 shards these are missing: 2",
        "cut": f"has {BATCHES_AHEAD * 2 - 1} of the {BATCHES_AHEAD * 2} lines of its shard; continue its scan",
        "twice": "is named twice",
        "another scan": "fpr differs between",
        "no shard": "does not say which shard it is",
        "no file": "is not a file",
    }
    if fault == "missing":
        parts.pop()
    elif fault == "cut":
        parts[1].write_bytes(b"".join(parts[1].read_bytes().splitlines(keepends=True)[:-1]))
    elif fault == "twice":
        parts.append(parts[0])
    elif fault == "another scan":
        beside = parts[2].with_name(f"{parts[2].name}.scan.json")
        beside.write_text(json.dumps({**json.loads(beside.read_text()), "fpr": 0.2}))
    elif fault == "no shard":
        parts[0].with_name(f"{parts[0].name}.scan.json").unlink()
    else:
        parts[0].unlink()
    capsys.readouterr()
    assert main(["scan", "--join", *map(str, parts), "--output", str(tmp_path / "joined.jsonl")]) == 2
    error = capsys.readouterr().err
    assert messages[fault] in error
    assert error.count("\n") == 1


def test_a_shard_is_resumed_and_another_is_not_mixed_with_it(
    parts: list[Path], scan: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    path = parts[0]
    before = path.read_bytes()
    path.write_bytes(before[: len(before) // 2])
    assert main(scan(*TWO_DEFENSES, batch_size=1, shard="3/3", output=path, resume=True)) == 0
    assert path.read_bytes() == before
    capsys.readouterr()
    assert main(scan(*TWO_DEFENSES, batch_size=1, shard="2/3", output=path, resume=True)) == 2
    assert capsys.readouterr().err.startswith("error: shard: {'number': 2, ")


@pytest.mark.parametrize("value", ["0/3", "4/3", "3", "3/", "a/b", "1/0", "-1/3"])
def test_a_shard_that_does_not_exist_is_refused(
    value: str, scan: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*scan(), f"--shard={value}"]) == 2
    assert f"shard: {value!r} is not one of a number of shards; count from 1" in capsys.readouterr().err


def test_standard_input_has_no_shards(scan: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(scan(input="-", shard="1/2")) == 2
    assert "shard: standard input and pipes cannot be divided" in capsys.readouterr().err


def test_two_processes_write_the_bytes_of_one(
    scan: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(text) + "\n" for text in TEXTS), encoding="utf-8")
    options = {"batch_size": 1, "input": tmp_path / "texts.jsonl"}
    assert main(scan(*TWO_DEFENSES, **options)) == 0
    said = capsys.readouterr().err
    two = command(*scan(*TWO_DEFENSES, **options, output=tmp_path / "two.jsonl", devices=2), cwd=tmp_path)
    assert two.returncode == 0, two.stderr
    assert (tmp_path / "two.jsonl").read_bytes() == (tmp_path / "found.jsonl").read_bytes()
    assert two.stderr.splitlines()[-7:] == said.replace("found", "two").splitlines()[-7:]
    with (tmp_path / "texts.jsonl").open("a") as file:  # an error of the input ends both processes
        file.write('"cut\n')
    options["input"] = tmp_path / "texts.jsonl"
    failed = command(*scan(*TWO_DEFENSES, **options, output=tmp_path / "cut.jsonl", devices=2), cwd=tmp_path)
    assert failed.returncode == 2
    assert failed.stderr.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in failed.stderr
    assert (tmp_path / "cut.jsonl").read_bytes() == (tmp_path / "found.jsonl").read_bytes()
