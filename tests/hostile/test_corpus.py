"""Hostile inputs: each is refused in one line or read, and runs no code; all in a minute of one process's time."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lightning_backdoor.cli import main
from tests.hostile.checkpoints import checkpoints, unsafe_options
from tests.hostile.configs import configs, grids
from tests.hostile.hostile_input import Files, HostileInput
from tests.hostile.tables import scan_inputs, tables
from tests.support.workspace import labelled_texts

CONFIG = """\
data: {class_path: lightning_backdoor.data.BackdoorDataModule, init_args: {source: {path: data.csv}}}
model: {class_path: lightning_backdoor.attacks.BadNets, init_args: {model: model}}
"""


def _corpus(folder: Path, tiny: Path, run: Path, marker: Path) -> Iterator[HostileInput]:
    calibration = folder / "calibration.txt"
    calibration.write_text("\n".join(text for text, _ in labelled_texts(20)), encoding="utf-8")
    model = run / "model"
    yield from tables(Files(folder / "tables"), marker)
    yield from scan_inputs(Files(folder / "scan"), model, calibration, marker)
    yield from checkpoints(Files(folder / "checkpoints"), model, calibration, marker)
    yield from unsafe_options(Files(folder / "options"), run, marker)
    yield from configs(Files(folder / "configs"), marker)
    yield from grids(Files(folder / "grids"), tiny / "model")


def _wrong(hostile: HostileInput, capture: pytest.CaptureFixture[str]) -> str | None:
    """What is wrong with the command's end; None if all is right."""
    started = time.process_time()
    try:
        status = main(hostile.args)
    except SystemExit as end:  # argparse
        status = int(end.code or 0)
    except BaseException as error:
        return f"{type(error).__name__}: {str(error)[:200]!r}"
    seconds = time.process_time() - started
    output = capture.readouterr()
    if status not in hostile.statuses:
        return f"status {status}, {output.err[-300:]!r}"
    if status and not output.err.rstrip("\n").splitlines()[-1:]:
        return "no message"
    if status and len(output.err.splitlines()[-1]) > 2000:
        return f"a message of {len(output.err)} characters"
    raw = {c for c in output.err + output.out if not c.isprintable()} - set("\n\r\t")
    if raw:
        return f"control characters {raw}"
    return f"{seconds:.1f} s" if seconds > 5 else None


@pytest.mark.filterwarnings("ignore")
def test_a_hostile_input_is_refused_in_one_line_and_runs_no_code(
    inside: Path,
    trained: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    marker = tmp_path / "code has run"
    (inside / "hostile.yaml").write_text(CONFIG, encoding="utf-8")
    started, count, wrong = time.process_time(), 0, []
    for hostile in _corpus(tmp_path, inside, trained, marker):
        capfd.readouterr()
        problem = _wrong(hostile, capfd)
        if marker.exists():
            problem = "code has run"
            marker.rmdir()
        if problem is not None:
            wrong.append(f"{hostile.name}: {problem}")
        count += 1
    seconds = time.process_time() - started
    shutil.rmtree(tmp_path, ignore_errors=True)
    assert not wrong, "\n".join(wrong)
    assert count >= 300
    assert seconds < 60, f"{count} inputs took {seconds:.0f} s"
