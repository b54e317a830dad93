"""Output after the terminal was closed."""

from __future__ import annotations

import os
import pty
import sys
from pathlib import Path

import pytest

from lightning_backdoor.commands.streams import leave_closed_terminal


def test_a_closed_terminal_is_left_and_an_open_one_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    controller, terminal = pty.openpty()
    with Path(os.ttyname(terminal)).open("w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        leave_closed_terminal()
        assert sys.stdout is stream
        os.close(controller)
        leave_closed_terminal()
        assert sys.stdout is not stream
        sys.stdout.write("nowhere\n")
        sys.stdout.close()
    os.close(terminal)


def test_files_and_pipes_are_not_left(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as pipe, (tmp_path / "output.txt").open("w") as file:
        monkeypatch.setattr(sys, "stdout", pipe)
        monkeypatch.setattr(sys, "stderr", file)
        leave_closed_terminal()
        assert (sys.stdout, sys.stderr) == (pipe, file)
