"""Signals end a command with their exit status, and leave a folder that can be resumed, or none."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_backdoor.cli import main
from lightning_backdoor.commands import poison
from lightning_backdoor.commands.run_folder import VARIABLE, only_fit
from lightning_backdoor.commands.signals import Ended, ended_by_signals
from lightning_backdoor.errors import InputError

#: a callback that sends this process a signal in the second epoch.
SENDER = """
import signal

from lightning.pytorch import Callback


class Sender(Callback):
    def __init__(self, number: int) -> None:
        self.number = number

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.current_epoch == 1 and batch_idx == 3:
            signal.raise_signal(self.number)
"""
SIGNALS = {signal.SIGTERM: "ended by SIGTERM", signal.SIGHUP: "ended by SIGHUP", signal.SIGINT: "interrupted"}


@pytest.fixture
def working(inside: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The workspace as working directory, with the callback; handlers of signals are restored afterwards."""
    (inside / "sender.py").write_text(SENDER, encoding="utf-8")
    monkeypatch.setenv(VARIABLE, "")
    monkeypatch.delenv(VARIABLE)
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield inside
    assert {number: signal.getsignal(number) for number in SIGNALS} == before


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_signal_ends_fit_with_its_status_and_the_run_can_be_resumed(
    number: signal.Signals, working: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = working / f"ended-{number.name}"
    shutil.rmtree(run, ignore_errors=True)
    sender = ["--trainer.callbacks+=sender.Sender", "--trainer.callbacks.number", str(int(number))]
    args = ["fit", "-c", "data.yaml", "--trainer.max_epochs", "2", "--run_dir", run.name]
    assert main([*args, *sender]) == 128 + number
    lines = capsys.readouterr().err.splitlines()
    kept = "the epochs that are complete are kept; to continue: lightning-backdoor fit --config"
    assert lines[-1] == f"{SIGNALS[number]}; {kept} {run / 'config.yaml'} --ckpt_path last"
    assert not any("Traceback" in line or "Detected" in line for line in lines)
    assert not list(run.glob(".*"))
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["epoch"] == 0
    assert main([*args, "--ckpt_path", "last", "--keep_last", "true"]) == 0
    resumed = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert (resumed["epoch"], resumed["global_step"]) == (1, 2 * checkpoint["global_step"])


def test_poison_that_is_ended_while_it_writes_leaves_no_folder(
    working: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = poison._write

    def ended(path: Path, *args: Any) -> None:
        write(path, *args)
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(poison, "_write", ended)
    output = tmp_path / "new" / "poisoned"
    assert main(["poison", "-c", "data.yaml", "--output", str(output), "--stealth_rows", "0"]) == 143
    assert not list(output.parent.iterdir())


def test_a_process_ends_with_the_status_that_shells_expect_and_nohup_is_kept(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys\n"
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "import lightning_backdoor.cli as cli\n"
        "def run(args):\n"
        "    os.kill(os.getpid(), signal.SIGHUP)\n"
        "    print('still here', flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    signal.pause()\n"
        "cli._run = run\n"
        "sys.exit(cli.main(['fit']))\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout, ended.stderr) == (
        143,
        "still here\n",
        "ended by SIGTERM; nothing was written; run the same command again\n",
    )


def test_later_signals_do_not_interrupt_the_cleaning_up(working: Path) -> None:
    cleaned: list[bool] = []

    def command() -> None:
        try:
            signal.raise_signal(signal.SIGHUP)
        finally:
            signal.raise_signal(signal.SIGTERM)
            cleaned.append(True)

    with pytest.raises(Ended) as ended, ended_by_signals() as received:
        command()
    assert cleaned
    assert received.number == signal.SIGHUP
    assert ended.value.code == 129


def test_a_program_that_has_handlers_of_its_own_keeps_them(working: Path) -> None:
    caught: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: caught.append(number))
    try:
        with ended_by_signals() as received:
            os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    assert caught == [signal.SIGTERM]
    assert received.number is None


def test_a_signal_that_lightning_noticed_alone_still_sets_the_status(
    working: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def swallowed(args: list[str]) -> int:
        try:
            signal.raise_signal(signal.SIGTERM)
        except Ended:
            raise SystemExit from None  # as Lightning does at the end of a batch
        return 0

    monkeypatch.setattr("lightning_backdoor.cli._run", swallowed)
    assert main(["fit"]) == 143


def test_fit_is_refused_in_a_folder_in_which_another_process_trains(
    working: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = working / "busy"
    run.mkdir(exist_ok=True)
    with only_fit(run, resume=False):
        assert main(["fit", "-c", "data.yaml", "--run_dir", "busy"]) == 2
        assert f"error: run_dir: another process trains in {run}; wait for it" in capsys.readouterr().err
    assert not (run / "config.yaml").exists()
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "best.ckpt").touch()  # by a process that was faster
    with pytest.raises(InputError, match="holds a run already"), only_fit(run, resume=False):
        pass
    with only_fit(run, resume=True):
        pass


@pytest.mark.parametrize("command", ["fit", "poison"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_command_that_is_ended_while_rows_are_poisoned_says_in_one_line_how_to_go_on(
    command: str,
    number: signal.Signals,
    working: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def ended(*args: Any) -> None:
        signal.raise_signal(number)

    monkeypatch.setattr("lightning_backdoor.attacks.BadNets.poison_texts", ended)
    monkeypatch.setenv("LIGHTNING_BACKDOOR_CACHE", str(tmp_path / "cache"))
    folder = "--output" if command == "poison" else "--run_dir"
    assert main([command, "-c", "data.yaml", folder, str(tmp_path / "new")]) == 128 + number
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{SIGNALS[number]}; ")
    assert "run the same command again" in line
    assert not (tmp_path / "new").exists()


def test_control_c_in_an_import_that_turns_it_into_another_error_is_control_c(
    working: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(args: list[str]) -> int:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise ImportError("initialization failed") from None
        return 0

    monkeypatch.setattr("lightning_backdoor.cli._run", run)
    assert main(["fit"]) == 130
    assert capsys.readouterr().err == "interrupted; nothing was written; run the same command again\n"
