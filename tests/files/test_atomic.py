"""Folders appear complete or not at all, and nothing is left of what was not completed."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from lightning_backdoor.files.atomic import replaced_folder, whole_folder

FORK = multiprocessing.get_context("fork")


@pytest.mark.parametrize("new_folder", [whole_folder, replaced_folder])
def test_what_a_killed_process_left_is_removed_and_what_another_one_fills_is_not(
    new_folder: Callable[[Path], AbstractContextManager[Path]], tmp_path: Path
) -> None:
    def fill_and_die() -> None:
        with new_folder(tmp_path / "killed") as folder:
            (folder / "file").touch()
            os.kill(os.getpid(), signal.SIGKILL)

    process = FORK.Process(target=fill_and_die)
    process.start()
    process.join(60)
    (left,) = tmp_path.iterdir()
    (tmp_path / ".partial-of-somebody-else").mkdir()
    with new_folder(tmp_path / "one") as first, new_folder(tmp_path / "two"):
        assert not left.exists()
        (first / "file").touch()
    assert {path.name for path in tmp_path.iterdir()} == {"one", "two", ".partial-of-somebody-else"}
    assert (tmp_path / "one" / "file").exists()
