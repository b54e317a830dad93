"""The output of a scan: one scan at a time writes it, and what cannot be written is refused at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lightning_backdoor.cli import main
from lightning_backdoor.commands.scan.calibration import calibrate
from lightning_backdoor.commands.scan.facts import Facts
from lightning_backdoor.files.locking import lock
from tests.support.scanning import model, scan

__all__ = ["model", "scan"]


def test_two_scans_never_write_one_file(
    scan: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "found.jsonl"
    with output.open("wb") as file:
        assert lock(file, wait=False)
        assert main(scan()) == 2
        assert "output: another scan writes " in capsys.readouterr().err
    output.unlink()

    def meanwhile(*args: Any) -> Facts:
        output.touch()  # by a scan that started at the same moment
        return calibrate(*args)

    monkeypatch.setattr("lightning_backdoor.commands.scan.run.calibrate", meanwhile)
    assert main(scan()) == 2
    assert "output: another scan writes " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("missing/found.jsonl", "output: the folder missing does not exist; make it first"),
        ("clean.txt/found.jsonl", "output: "),
        (".", "output: . is a folder"),
        ("x" * 300, "output: " + "x" * 200 + " cannot be written ([Errno 36] File name too long"),
        ("y" * 300 + "/found.jsonl", "output: "),
        ("found.csv", "output: found.csv would not hold a table, but JSON lines; give a name that ends in .jsonl or"),
        ("missing/found.parquet", "output: the folder missing does not exist; make it first"),
    ],
    ids=lambda value: value[:20],
)
def test_an_output_that_cannot_be_written_is_refused_at_once(
    output: str,
    message: str,
    scan: Callable[..., list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    args = scan(output=output)
    monkeypatch.chdir(tmp_path)
    assert main(args) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}")
    assert error.count("\n") == 1


def test_a_device_is_written_to_and_a_full_one_is_reported(
    scan: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(scan(output="/dev/null")) == 0
    assert not Path("/dev/null.scan.json").exists()
    capsys.readouterr()
    assert main(scan(output="/dev/full")) == 1
    assert capsys.readouterr().err.endswith("error: No space left on device\n")
