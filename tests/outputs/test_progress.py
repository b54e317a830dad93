"""Progress is a bar on a terminal, a line a minute elsewhere, and nothing in other processes than the first."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from lightning_utilities.core.rank_zero import rank_zero_only

from lightning_backdoor.callbacks import ProgressWriter
from lightning_backdoor.outputs import progress as module
from lightning_backdoor.outputs.progress import progress, tracked


@pytest.fixture
def pass_(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Moves the clock on."""
    now = [1000.0]
    monkeypatch.setattr("lightning_backdoor.outputs.progress.time.monotonic", lambda: now[0])

    def move(seconds: float) -> None:
        now[0] += seconds

    return move


def test_without_a_terminal_there_is_a_line_a_minute_with_the_time_that_is_left(
    pass_: Callable[[float], None], capsys: pytest.CaptureFixture[str]
) -> None:
    with progress("scoring", 400, "texts", done=100) as advance:
        for _ in range(30):
            pass_(5.0)
            advance(10)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "scoring: 220 of 400 texts, about 1 min 30 s left",
        "scoring: 340 of 400 texts, about 30.0 s left",
        "scoring: done in 2 min 30 s",
    ]


def test_what_takes_less_than_a_minute_writes_nothing(
    pass_: Callable[[float], None], capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in tracked(range(10), "scoring", "texts"):
        pass_(5.0)
    assert capsys.readouterr().err == ""


def test_of_several_processes_only_the_first_writes(
    pass_: Callable[[float], None], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    assert [*tracked([1, 2], "scoring", "texts")] == [1, 2]
    for _ in tracked(range(10), "scoring", "texts"):
        pass_(100.0)
    assert capsys.readouterr().err == ""


def test_nothing_is_told_of_a_run_that_failed(
    pass_: Callable[[float], None], capsys: pytest.CaptureFixture[str]
) -> None:
    writer = ProgressWriter()
    trainer: Any = SimpleNamespace(is_global_zero=True, sanity_checking=False, num_val_batches=[10])
    model: Any = None
    writer.on_validation_start(trainer, model)
    writer.on_exception(trainer, model, RuntimeError("stopped"))
    trainer.sanity_checking = True  # of the next fit
    writer.on_validation_start(trainer, model)
    pass_(100.0)
    writer.on_validation_batch_end()
    writer.on_validation_end(trainer, model)
    assert capsys.readouterr().err == ""


def test_on_a_terminal_there_is_a_bar(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BAR_DELAY", 0.0)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    for _ in tracked(iter([1, 2]), "scoring", "texts", 2):
        pass
    err: Any = capsys.readouterr().err
    assert "scoring" in err
    assert "/2" in err
    assert "\n" not in err
