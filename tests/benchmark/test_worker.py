"""Workers: nothing twice, nothing lost by a kill, nothing read that is half written."""

from __future__ import annotations

import json
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from lightning_backdoor.benchmark.grid import Grid
from lightning_backdoor.benchmark.running import worker
from lightning_backdoor.benchmark.running.journal import Journal, claimed
from lightning_backdoor.benchmark.running.run_grid import Launch
from lightning_backdoor.benchmark.running.worker import Worker
from lightning_backdoor.benchmark.write_results import write_results
from lightning_backdoor.errors import InputError
from tests.benchmark.grids import REPAIRED, run_stub, stub_command, stub_grid, stub_process


@pytest.fixture
def stubbed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "run_command", stub_command)


def table(folder: Path) -> str:
    """``results.csv`` without what differs between two runs of the same grid."""
    write_results(Grid(folder / "grid.yaml"), folder, "")
    lines = [line.split(",") for line in (folder / "results.csv").read_text(encoding="utf-8").splitlines()]
    timings = [lines[0].index(name) for name in ("overhead", "seconds")]
    return "\n".join(",".join(cell for i, cell in enumerate(line) if i not in timings) for line in lines)


def done(folder: Path) -> Counter[tuple[str, str]]:
    events = [json.loads(line) for line in (folder / "journal.jsonl").read_text(encoding="utf-8").splitlines()]
    kept = [event for event in events if "error" not in event and not event["kind"].startswith("begun ")]
    return Counter((event["kind"], event["id"]) for event in kept)


@pytest.mark.usefixtures("stubbed")
def test_twenty_kills_change_nothing(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
        stub_grid(folder / "grid.yaml", attacks=3, defenses=2, seeds=2, **REPAIRED)
    run_stub(whole)
    rng, kills = random.Random(0), 0
    while kills < 20:
        process = stub_process(killed, seconds=0.01)
        process.join(timeout=rng.uniform(0.05, 0.4))
        process.kill()
        process.join()
        kills += process.exitcode == -signal.SIGKILL
        if process.exitcode == 0:  # all done: begin again, so that there are twenty
            assert set(done(killed).values()) == {1}
            (killed / "journal.jsonl").unlink()
    process = stub_process(killed, seconds=0)
    process.join()
    assert process.exitcode == 0
    assert table(killed) == table(whole)
    assert set(done(killed).values()) == {1}
    assert {path.name for path in killed.iterdir()} == {path.name for path in whole.iterdir()}
    for folder in (*(whole / "cells").iterdir(), *(whole / "victims").iterdir()):
        twin = killed / folder.relative_to(whole)
        assert {path.name for path in folder.iterdir()} == {path.name for path in twin.iterdir()}


def test_workers_at_once_share_the_cells_and_do_none_twice(tmp_path: Path) -> None:
    stub_grid(tmp_path / "grid.yaml", attacks=2, defenses=3, seeds=2, **REPAIRED)
    workers = [stub_process(tmp_path, seconds=0.05) for _ in range(3)]
    for process in workers:
        process.join()
    assert [process.exitcode for process in workers] == [0, 0, 0]
    counts = done(tmp_path)
    assert len(counts) == 20 + 8
    assert set(counts.values()) == {1}


def test_a_failing_cell_is_recorded_and_the_rest_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(
        command: str, args: list[str], folder: Path, log: int, trainer: Mapping[str, Any], *more: object
    ) -> None:
        if command == "test" and "number: 1" in (folder / "test.yaml").read_text(encoding="utf-8"):
            raise InputError("bar", "3 is out of range;\ngive less")
        stub_command(command, args, folder, log, trainer)

    grid = stub_grid(tmp_path / "grid.yaml", attacks=1, defenses=3, seeds=1)
    monkeypatch.setattr(worker, "run_command", failing)
    Worker(tmp_path, grid.cells, "one").run()
    rows = write_results(grid, tmp_path, "").rows
    assert [row["error"] for row in rows] == ["", "bar: 3 is out of range; give less", ""]
    assert rows[1]["cacc"] is None
    assert "InputError" in (tmp_path / "cells" / grid.cells[1].id / "log.txt").read_text(encoding="utf-8")
    monkeypatch.setattr(worker, "run_command", stub_command)
    Worker(tmp_path, grid.cells, "two").run()  # what failed is tried again, what is done is not
    assert [row["error"] for row in write_results(grid, tmp_path, "").rows] == ["", "", ""]
    assert set(done(tmp_path).values()) == {1}


def test_cells_of_one_victim_come_together_and_those_of_victims_that_nobody_tests_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tested = []

    def recorded(command: str, args: list[str], folder: Path, log: int, *more: Any) -> None:
        stub_command(command, args, folder, log, *more)
        tested.extend([folder.name] if command == "test" else [])

    grid = stub_grid(tmp_path / "grid.yaml", attacks=2, defenses=2, seeds=1)
    in_turn = [grid.cells[i] for i in (0, 2, 1, 3)]  # of the first victim, the second, the first, the second
    Journal(tmp_path / "journal.jsonl").append("begun cell", in_turn[0].id, launch="one")  # by another worker
    monkeypatch.setattr(worker, "run_command", recorded)
    Worker(tmp_path, in_turn, "one").run()
    assert tested == [in_turn[i].id for i in (1, 3, 0, 2)]


def test_a_victim_that_was_trained_but_not_recorded_is_not_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = []

    def counted(
        command: str, args: list[str], folder: Path, log: int, trainer: Mapping[str, Any], *more: object
    ) -> None:
        commands.append(command)
        stub_command(command, args, folder, log, trainer)
        if command == "fit":
            with zipfile.ZipFile(folder / "checkpoints" / "best.ckpt", "w") as file:
                file.writestr("weights", b"whole")

    grid = stub_grid(tmp_path / "grid.yaml", attacks=1, defenses=2, seeds=1)
    monkeypatch.setattr(worker, "run_command", counted)
    Worker(tmp_path, grid.cells, "one").run()
    (tmp_path / "journal.jsonl").unlink()  # as if killed between the end of the training and its record
    Worker(tmp_path, grid.cells, "two").run()
    assert commands == ["fit", "test", "test", "test", "test"]
    assert set(done(tmp_path).values()) == {1}


def test_a_victim_that_fails_fails_its_cells_and_is_tried_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def failing(
        command: str, args: list[str], folder: Path, log: int, trainer: Mapping[str, Any], *more: object
    ) -> None:
        tried.append(command)
        raise ZeroDivisionError("no rows")

    grid = stub_grid(tmp_path / "grid.yaml", attacks=1, defenses=3, seeds=1)
    monkeypatch.setattr(worker, "run_command", failing)
    Worker(tmp_path, grid.cells, "one").run()
    assert tried == ["fit"]
    errors = [row["error"] for row in write_results(grid, tmp_path, "").rows]
    assert errors == ["victim: ZeroDivisionError: no rows"] * 3


@pytest.mark.usefixtures("stubbed")
def test_two_thousand_cells_cost_little_but_their_own_time_and_no_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = 0.0
    memory: list[int] = []

    def timed(command: str, args: list[str], folder: Path, log: int, trainer: Mapping[str, Any], *more: object) -> None:
        nonlocal inside
        started = time.perf_counter()
        stub_command(command, args, folder, log, trainer)
        inside += time.perf_counter() - started
        memory.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)

    cells = stub_grid(tmp_path / "grid.yaml", attacks=10, defenses=10, seeds=20).cells
    monkeypatch.setattr(worker, "run_command", timed)
    # the intervals of a row are numbers, not bookkeeping
    monkeypatch.setattr("lightning_backdoor.benchmark.table.measured", lambda metrics, outcomes, cleaning: metrics)
    started = time.perf_counter()
    Worker(tmp_path, cells, "one").run()
    bookkeeping = time.perf_counter() - started - inside
    assert len(done(tmp_path)) == 2200
    assert bookkeeping / 2000 < 0.05, bookkeeping
    assert memory[-1] - memory[200] < 20_000  # KiB


def test_half_a_line_is_neither_read_nor_left(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    Journal(path).append("cell", "one", seconds=1)
    with path.open("ab") as file:
        file.write(b'{"kind": "cell", "id": "tw')
    reader = Journal(path)
    assert [event["id"] for event in reader.refresh()] == ["one"]
    Journal(path).append("cell", "three")
    assert [event["id"] for event in reader.refresh()] == ["three"]
    assert path.read_text(encoding="utf-8").count("\n") == 2


def test_what_is_done_stays_done(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    journal.append("cell", "one", launch="a", error="first")
    journal.append("cell", "one", launch="b", seconds=1)
    journal.append("cell", "one", launch="c", error="late")
    journal.refresh()
    event = journal.get("cell", "one")
    assert event is not None
    assert event["seconds"] == 1
    assert [journal.failed("cell", "one", launch) for launch in "abc"] == [True, False, True]


def test_work_is_free_again_when_the_last_process_that_has_its_log_has_ended(tmp_path: Path) -> None:
    log = tmp_path / "work" / "log.txt"
    code = (
        "import subprocess, sys; from pathlib import Path\n"
        "from lightning_backdoor.benchmark.running.journal import claimed\n"
        "with claimed(Path(sys.argv[1])) as log:\n"
        "    child = subprocess.Popen([sys.executable, '-c', 'input()'], stdin=0, stdout=log)\n"
        "    print('begun', flush=True); child.wait()"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(log)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    assert parent.stdout.readline() == "begun\n"
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    with claimed(log) as descriptor:
        assert descriptor is None  # its child is still at work
    assert parent.stdin is not None
    parent.stdin.close()
    for _ in range(100):
        with claimed(log) as descriptor:
            if descriptor is not None:
                return
        time.sleep(0.05)
    raise AssertionError("nobody is at work, and the lock holds")


def test_what_failed_in_a_launch_is_not_tried_again_in_it_whatever_others_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    def failing(
        command: str, args: list[str], folder: Path, log: int, trainer: Mapping[str, Any], *more: object
    ) -> None:
        tried.append(command)
        raise InputError("model", "is broken")

    cells = stub_grid(tmp_path / "grid.yaml", attacks=1, defenses=1, seeds=1).cells
    monkeypatch.setattr(worker, "run_command", failing)
    for launch in ("one", "two", "one", "two"):
        Worker(tmp_path, cells, launch).run()
    assert tried == ["fit", "fit"]


@pytest.mark.usefixtures("stubbed")
def test_what_was_deleted_is_made_again(tmp_path: Path) -> None:
    grid = stub_grid(tmp_path / "grid.yaml", attacks=1, defenses=2, seeds=1)
    Worker(tmp_path, grid.cells, "one").run()
    before = table(tmp_path)
    shutil.rmtree(tmp_path / "cells" / grid.cells[0].id)
    assert len(write_results(grid, tmp_path, "").rows) == 1
    Worker(tmp_path, grid.cells, "two").run()
    assert table(tmp_path) == before


def test_a_job_whose_time_is_up_does_not_fail_its_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from submitit.core.utils import UncompletedJobError

    def interrupted(
        command: str, args: list[str], folder: Path, log: int, trainer: Mapping[str, Any], *more: object
    ) -> None:
        raise UncompletedJobError("timed out too many times")

    grid = stub_grid(tmp_path / "grid.yaml", attacks=1, defenses=1, seeds=1)
    monkeypatch.setattr(worker, "run_command", interrupted)
    with pytest.raises(UncompletedJobError):
        Worker(tmp_path, grid.cells, "one").run()
    assert not done(tmp_path)
    assert "error" not in (tmp_path / "journal.jsonl").read_text(encoding="utf-8")


def test_a_file_system_without_locks_is_said_on_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(descriptor: int, how: int) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("lightning_backdoor.benchmark.running.journal.fcntl.flock", refused)
    with pytest.raises(InputError, match="without locks"), claimed(tmp_path / "log.txt"):
        pass
    with pytest.raises(InputError, match="without locks"):
        Journal(tmp_path / "journal.jsonl").append("cell", "one")


def test_a_preempted_job_is_queued_again_as_it_is(tmp_path: Path) -> None:
    job = Launch(tmp_path / "grid.yaml", tmp_path, ["seed=0"], "launch")
    assert job.checkpoint().function is job
