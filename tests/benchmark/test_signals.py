"""SIGTERM and SIGHUP end ``benchmark``, its workers and all that these started, and the grid can be resumed."""

from __future__ import annotations

import csv
import os
import random
import shutil
import signal
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing.context import ForkProcess
from pathlib import Path

import pytest

from lightning_backdoor.benchmark.grid import Grid
from lightning_backdoor.benchmark.running import cluster, run_command, worker
from lightning_backdoor.benchmark.running.worker import Worker
from lightning_backdoor.benchmark.table import TIMINGS
from lightning_backdoor.benchmark.write_results import write_results
from lightning_backdoor.cli import main
from lightning_backdoor.commands.signals import Ended, ended_by_signals
from tests.benchmark.grids import REPAIRED, SMALL, run_stub, stub_command, stub_grid
from tests.support.forked import FORK, begin
from tests.support.waiting import wait_until

#: for machines that are busy.
SECONDS = 120


def processes(text: str) -> list[int]:
    """The other processes that have a text in their command line."""
    ids = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if text.encode() in (process / "cmdline").read_bytes() and process.name != str(os.getpid()):
                ids.append(int(process.name))
    return ids


def table(folder: Path) -> list[dict[str, str]]:
    """``results.csv`` without what differs between two runs of the same grid."""
    write_results(Grid(folder / "grid.yaml"), folder, "")
    with (folder / "results.csv").open(encoding="utf-8", newline="") as file:
        return [{name: value for name, value in row.items() if name not in TIMINGS} for row in csv.DictReader(file)]


def started(target: Callable[[Path], None], folder: Path) -> ForkProcess:
    """Starts a function in a new process, which begins at once."""
    process = FORK.Process(target=target, args=(folder,))
    process.start()
    return process


def ended_stub(folder: Path) -> None:
    with ended_by_signals():
        folder.with_name("begun").touch()
        run_stub(folder, seconds=0.01)


def test_workers_that_are_ended_leave_nothing_half_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "run_command", stub_command)
    whole, ended = tmp_path / "whole", tmp_path / "ended"
    for folder in (whole, ended):
        folder.mkdir()
        stub_grid(folder / "grid.yaml", attacks=3, defenses=2, seeds=2, **REPAIRED)
    Worker(whole, Grid(whole / "grid.yaml").cells, "launch").run()
    rng = random.Random(0)
    statuses: list[int | None] = []
    while not statuses or statuses[-1] != 0:
        begun = tmp_path / "begun"
        begun.unlink(missing_ok=True)
        process = started(ended_stub, ended)
        wait_until(begun.exists)
        process.join(timeout=rng.uniform(0.1, 0.4) if len(statuses) < 6 else SECONDS)
        if process.is_alive():
            assert process.pid is not None
            os.kill(process.pid, rng.choice([signal.SIGTERM, signal.SIGHUP]))
        process.join(timeout=SECONDS)
        statuses.append(process.exitcode)
    assert {143, 129} & set(statuses)
    assert set(statuses) <= {143, 129, 0, -signal.SIGTERM, -signal.SIGHUP}  # the last two after the work was done
    assert table(ended) == table(whole)
    assert {path.name for path in ended.iterdir()} == {path.name for path in whole.iterdir()}


def test_a_command_that_is_ended_ends_its_workers_and_is_resumed(inside: Path) -> None:
    text = SMALL.replace("max_epochs: 2", "max_epochs: 8").replace("  gradient attention: ", "  # ")
    Path("grid.yaml").write_text(text, encoding="utf-8")
    command = ["benchmark", "--config", "grid.yaml", "--output"]
    process = begin([*command, "ended", "--jobs", "2"], cwd=inside, env={}, output=inside / "printed")
    wait_until(lambda: list(Path("ended").glob("victims/*/checkpoints/last.ckpt")))
    assert len(processes(str(Path("ended").resolve()))) == 2
    process.terminate()
    process.join(timeout=SECONDS)
    assert process.exitcode == 128 + signal.SIGTERM
    assert "run the same command to continue" in (inside / "printed.err").read_text(encoding="utf-8")
    assert processes(str(Path("ended").resolve())) == []
    assert Path("ended", "results.csv").is_file()
    assert main([*command, "ended"]) == 0
    assert main([*command, "whole"]) == 0
    for folder in ("ended", "whole"):
        shutil.copy("grid.yaml", folder)
    assert table(Path("ended")) == table(Path("whole"))


@pytest.fixture
def terminated() -> Iterator[Callable[[Callable[[], object]], None]]:
    """A function that sends SIGTERM to this process once a condition holds."""
    threads = []

    def send(condition: Callable[[], object]) -> None:
        def later() -> None:
            wait_until(condition)
            os.kill(os.getpid(), signal.SIGTERM)

        threads.append(threading.Thread(target=later))
        threads[-1].start()

    yield send
    for thread in threads:
        thread.join()


@pytest.mark.parametrize("stubborn", [False, True])
def test_processes_that_train_together_end_with_their_worker(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    terminated: Callable[[Callable[[], object]], None],
    stubborn: bool,
) -> None:
    program = tmp_path / "python"  # starts another process, as Lightning does
    trap = "trap '' TERM; " if stubborn else ""
    program.write_text(
        f"#!/bin/bash\n{trap}sleep 654.{int(stubborn)} & touch {tmp_path}/started; wait\n", encoding="utf-8"
    )
    program.chmod(stat.S_IRWXU)
    monkeypatch.setattr(sys, "executable", str(program))
    monkeypatch.setattr(run_command, "ENDING_SECONDS", 0.5)
    terminated((tmp_path / "started").exists)
    with (tmp_path / "log.txt").open("ab+") as log, ended_by_signals(), pytest.raises(Ended):
        run_command.run_command("fit", [], tmp_path, log.fileno(), {"devices": 2})
    wait_until(lambda: not processes(f"sleep\0654.{int(stubborn)}"))


def job(folder: Path) -> None:
    cluster.set_job_signals()
    (folder / "started").write_text(str(os.getpid()), encoding="utf-8")
    try:
        time.sleep(SECONDS)
    finally:
        (folder / "unwound").touch()


def test_jobs_on_this_machine_end_with_the_command(
    tmp_path: Path, terminated: Callable[[Callable[[], object]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]), prepend=os.pathsep)
    begun = tmp_path / "started"
    terminated(begun.exists)
    with ended_by_signals(), pytest.raises(Ended):
        cluster.run_jobs(
            lambda: job(tmp_path), tmp_path / "submitit", 1, "local", {"timeout_min": 10}, wait=lambda: None
        )
    assert (tmp_path / "unwound").exists()
    wait_until(lambda: not Path("/proc", begun.read_text(encoding="utf-8")).exists())


def test_a_closed_terminal_ends_a_job(tmp_path: Path) -> None:
    process = started(job, tmp_path)
    wait_until((tmp_path / "started").exists)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGHUP)
    process.join(timeout=SECONDS)
    assert process.exitcode == 129
    assert (tmp_path / "unwound").exists()
