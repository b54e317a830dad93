"""Threads that wait for others leave their cores to other work."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from lightning_backdoor.commands.threads import WAITING, let_waiting_threads_sleep


def test_a_command_makes_waiting_threads_sleep_before_torch_is_loaded() -> None:
    environment = {name: value for name, value in os.environ.items() if name not in WAITING}
    script = "from lightning_backdoor.cli import main; main(['--version']); import torch"
    shown = subprocess.run(
        [sys.executable, "-c", script],
        env={**environment, "OMP_DISPLAY_ENV": "verbose"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "OMP_WAIT_POLICY = 'PASSIVE'" in shown.stderr
    assert "GOMP_SPINCOUNT = '1000'" in shown.stderr


@pytest.mark.parametrize("name", WAITING)
def test_what_the_user_has_set_stays(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for other in WAITING:
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, "1")
    let_waiting_threads_sleep()
    assert {other: os.environ[other] for other in WAITING if other in os.environ} == {name: "1"}
