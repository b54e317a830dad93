"""Commands of a grid inside of a cluster's jobs, and the question which jobs are left; without a cluster."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from lightning_backdoor.benchmark.running import cluster
from lightning_backdoor.benchmark.running.cluster import Queue
from lightning_backdoor.benchmark.running.run_command import CommandError, run_command


def program(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/bash\n{script}\n", encoding="utf-8")
    path.chmod(stat.S_IRWXU)


@pytest.fixture
def queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Queue:
    """The queue of an array of two jobs, of which the first has written its result."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SQUEUE_STATES", "all")
    monkeypatch.setattr(cluster, "QUEUE_SECONDS", (0.0, 0.0))
    (tmp_path / "7_0.pkl").touch()
    jobs = [
        SimpleNamespace(job_id=f"7_{i}", paths=SimpleNamespace(result_pickle=tmp_path / f"7_{i}.pkl")) for i in (0, 1)
    ]
    return Queue(jobs)


@pytest.mark.parametrize(
    ("script", "ended"),
    [
        ('[[ "$*" = *--jobs=7* && -z "$SQUEUE_STATES" ]] && echo 7_1', False),
        ("true", True),
        ("echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1", True),
        ("echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1", False),
    ],
    ids=["queued", "ended", "forgotten", "no answer"],
)
def test_jobs_have_ended_when_the_queue_no_longer_lists_them(
    queue: Queue, tmp_path: Path, script: str, ended: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    program(tmp_path / "squeue", script)
    assert [queue.ended(), queue.ended()] == [ended, ended]
    assert capsys.readouterr().err.count("Unable to contact") == script.count("Unable")  # once, not per question
    (tmp_path / "7_1.pkl").touch()
    assert queue.ended()


def test_a_command_in_a_job_of_several_tasks_does_not_wait_for_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setenv("SLURM_NTASKS", "4")
    monkeypatch.setattr(
        "lightning_backdoor.commands.fit.run", lambda *args: seen.append(os.environ.get("SLURM_NTASKS"))
    )
    with (tmp_path / "log.txt").open("ab+") as log:
        run_command("fit", [], tmp_path, log.fileno(), {})
    assert seen == [None]
    assert os.environ["SLURM_NTASKS"] == "4"


def test_the_message_of_a_command_is_not_hidden_by_the_program_that_started_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(
        tmp_path / "python",
        "echo 'error: data: no rows'; echo 'srun: error: one: task 0: Exited with exit code 2'; exit 2",
    )
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with (tmp_path / "log.txt").open("ab+") as log, pytest.raises(CommandError, match=r"^data: no rows$"):
        run_command("fit", [], tmp_path, log.fileno(), {"devices": 2})
