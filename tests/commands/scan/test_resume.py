"""Resuming a scan: the same bytes as an uninterrupted one, and never the results of two."""

from __future__ import annotations

import json
import shlex
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lightning_backdoor.cli import main
from lightning_backdoor.commands.scan.run import BATCHES_AHEAD
from lightning_backdoor.commands.scan.scoring import score_group
from lightning_backdoor.commands.scan.tally import Line
from tests.support.scanning import TEXTS, model, scan

__all__ = ["model", "scan"]


def test_standard_output_is_not_resumed(scan: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(scan(output="-", resume=True)) == 2
    said = "resume: standard output cannot be continued; give the --output that is to be continued"
    assert capsys.readouterr().err.strip().endswith(said)


@pytest.mark.parametrize("kept", [0, 3, 2 * BATCHES_AHEAD, 2 * BATCHES_AHEAD + 5, len(TEXTS)])
def test_a_killed_scan_resumes_to_the_same_file_and_verdict(
    kept: int, scan: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "found.jsonl"
    assert main(scan(batch_size=2)) == 0
    whole, said = output.read_bytes(), capsys.readouterr().err
    written = whole.splitlines(keepends=True)
    cut = b"".join(written[:kept]) + (written[kept][:40] if kept < len(written) else b"")
    output.write_bytes(cut)
    assert main(scan(batch_size=2)) == 2
    assert "exists; add --resume" in capsys.readouterr().err
    assert output.read_bytes() == cut
    assert main(scan(batch_size=2, resume=True)) == 0
    assert output.read_bytes() == whole
    assert capsys.readouterr().err == said


@pytest.fixture
def begun(scan: Callable[..., list[str]], tmp_path: Path) -> Path:
    """The output of a scan, with the settings beside it."""
    assert main(scan()) == 0
    return tmp_path / "found.jsonl"


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        ('{"text": "of another input"}\n{"te', TEXTS),
        ("my only copy\nof a poem", TEXTS),
        ("my only copy of a poem of one line", TEXTS),
        (json.dumps({"text": TEXTS[0], "flagged": True, "prediction": {}}) + "\n", TEXTS),
        (json.dumps({"text": TEXTS[0], "prediction": "a", "logits": [], "flagged": True}) + "\n{", TEXTS[:1]),
        (json.dumps({"text": TEXTS[0]}) + "\n", []),
        ("\0" * 100, TEXTS),
    ],
    ids=["another input", "not a scan", "one line", "other values", "one line too many", "no input", "zeros"],
)
def test_resuming_cuts_nothing_that_is_not_the_beginning_of_its_own_line(
    content: str,
    texts: list[str],
    scan: Callable[..., list[str]],
    begun: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    begun.write_text(content, encoding="utf-8")
    (tmp_path / "texts.txt").write_text("\n".join(texts), encoding="utf-8")
    capsys.readouterr()
    assert main(scan(resume=True)) == 2
    assert "is not the result of that text of" in capsys.readouterr().err
    assert begun.read_text(encoding="utf-8") == content


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"fpr": 0.2}, "fpr: 0.2 now, 0.3 when "),
        ({"seed": 1}, "seed: 1 now, 0 when "),
        ({"batch_size": 4}, "batch-size: 4 now, 32 when "),
        ({"max_length": 20}, "max-length: 20 now, None when "),
        ({"column": "body"}, "column: 'body' now, 'text' when "),
        ({"calibration": "texts.txt"}, "calibration: '"),
        ({"model": "other"}, "model: '"),
    ],
    ids=lambda value: str(value)[:15],
)
def test_resuming_with_another_setting_is_refused(
    changed: dict[str, Any],
    message: str,
    scan: Callable[..., list[str]],
    begun: Path,
    model: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    if "model" in changed:
        other = shutil.copytree(model, tmp_path / "other")
        (other / "config.json").write_text((other / "config.json").read_text() + " ")
    before = begun.read_bytes()
    capsys.readouterr()
    assert main(scan(resume=True, **changed)) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}")
    assert error.endswith("give the same, or name another output\n")
    assert begun.read_bytes() == before


def test_resuming_an_output_of_unknown_settings_is_refused(
    scan: Callable[..., list[str]], begun: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, beside = begun.read_bytes(), tmp_path / "found.jsonl.scan.json"
    for content in ("", "[]", "[" * 100_000, None):
        beside.unlink() if content is None else beside.write_text(content)
        capsys.readouterr()
        assert main(scan(resume=True)) == 2
        assert "found.jsonl.scan.json beside it does not say how its lines were made" in capsys.readouterr().err
    assert begun.read_bytes() == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_scan_with_the_command_that_continues_it(
    number: signal.Signals,
    scan: Callable[..., list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "found.jsonl"
    assert main(scan(batch_size=1)) == 0
    whole = output.read_bytes()
    output.unlink()
    groups = []

    def ended(*args: Any, **settings: Any) -> list[Line]:
        groups.append(args)
        if len(groups) == 2:
            signal.raise_signal(number)
        return score_group(*args, **settings)

    with monkeypatch.context() as patched:
        patched.setattr("lightning_backdoor.commands.scan.run.score_group", ended)
        capsys.readouterr()
        assert main(scan(batch_size=1)) == 128 + number
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"the lines of {BATCHES_AHEAD} texts are kept in {output}; continue with: lightning-backdoor scan " in error
    command = shlex.split(error.partition("lightning-backdoor ")[2])
    assert main(command) == 0
    assert output.read_bytes() == whole
