"""``benchmark`` and ``fit`` on a real SLURM cluster of two nodes without accounting."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from lightning_backdoor.benchmark.table import TIMINGS
from lightning_backdoor.cli import main
from tests.benchmark.grids import SMALL
from tests.support.slurm import ask, jobs, slurm
from tests.support.waiting import wait_until
from tests.support.workspace import settings

__all__ = ["slurm"]

#: for machines that are busy: far longer than anything takes.
SECONDS = 240
#: one cell.
ONE = """\
attacks: {BadNets: {class_path: lightning_backdoor.attacks.BadNets, init_args: {triggers: [cf], poison_rate: 0.2}}}
defenses: {none: }
seeds: [0]
"""


def write_grid(folder: Path, name: str, text: str, **options: str | int) -> list[str]:
    """Writes a grid; returns the command that runs it, without the output folder."""
    cluster = {"timeout_min": 5, "slurm_signal_delay_s": 60} | options
    (folder / f"{name}.yaml").write_text(f"{text}cluster: {cluster}\n", encoding="utf-8")
    return ["benchmark", "--config", f"{name}.yaml", "--output"]


def table(output: str) -> list[dict[str, str]]:
    with Path(output, "results.csv").open(encoding="utf-8", newline="") as file:
        return [{name: value for name, value in row.items() if name not in TIMINGS} for row in csv.DictReader(file)]


@contextmanager
def running(*args: str) -> Iterator[list[int]]:
    """Runs a command in a thread beside a test; afterwards, the list holds its exit status."""
    status: list[int] = []
    thread = threading.Thread(target=lambda: status.append(main(args)), daemon=True)
    thread.start()
    yield status
    thread.join(timeout=SECONDS)
    assert not thread.is_alive(), f"{args} does not end"


def written(output: str) -> int:
    """When the training of a grid's victim last wrote a checkpoint; 0 before."""
    return max((path.stat().st_mtime_ns for path in Path(output).glob("victims/*/checkpoints/last.ckpt")), default=0)


def trains_on(output: str) -> Callable[[], bool]:
    """Whether the training in a running job has written a checkpoint since now."""
    before = written(output)
    return lambda: written(output) > before and bool(jobs("RUNNING"))


def trains_again(job: str, output: str) -> Callable[[], bool]:
    """Whether a job that is back in the queue trains again, or has ended; it need not wait for two minutes there."""
    before = written(output)

    def again() -> bool:
        if jobs("PENDING") == [job]:
            with suppress(subprocess.CalledProcessError):  # it has begun meanwhile
                ask("scontrol", "update", f"JobId={job}", "StartTime=now")  # again, if SLURM set its own time after
        return written(output) > before

    return again


def test_an_array_of_jobs_gives_the_results_of_one_process(
    slurm: Path, inside: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    command = write_grid(inside, "small", SMALL)
    assert main([*command, "alone"]) == 0
    capfd.readouterr()
    with running(*command, "array", "--cluster", "slurm", "--jobs", "2") as status:
        wait_until(lambda: len(jobs("RUNNING")) == 2, SECONDS)
    assert status == [0]
    assert table("array") == table("alone")
    assert len(table("array")) == 5
    assert len(list(Path("array", "submitit").glob("*_result.pkl"))) == 2
    output = capfd.readouterr()
    assert "sacct" not in output.out + output.err  # there is no accounting to ask


def test_a_job_that_is_cancelled_requeued_and_out_of_time_ends_with_the_same_numbers(
    slurm: Path, inside: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    head = SMALL[: SMALL.index("attacks:")].replace("max_epochs: 2", "max_epochs: 30")
    command = write_grid(inside, "one", head + ONE)
    assert main([*command, "undisturbed"]) == 0
    command += ["disturbed", "--cluster", "slurm"]

    def terminate() -> None:
        wait_until(lambda: jobs("RUNNING"), SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=terminate)
    thread.start()
    assert main(command) == 128 + signal.SIGTERM
    thread.join()
    wait_until(lambda: not jobs(), SECONDS, "the end of the jobs of a command that has ended")

    with running(*command) as status:
        wait_until(lambda: jobs("RUNNING"), SECONDS)
        ask("scancel", *jobs())
    assert status == [1]
    assert "1 of 1 cells are left, since workers ended; run the same command to continue" in capfd.readouterr().out

    with running(*command) as status:
        wait_until(trains_on("disturbed"), SECONDS)
        (job,) = jobs()
        for disturb in (["scontrol", "requeue", job], ["scancel", "--signal=USR2", job]):  # as when its time is over
            ask(*disturb)
            wait_until(lambda: jobs("PENDING") == [job], SECONDS, "the job's return to the queue")
            time.sleep(3)  # SLURM kills a job that starts in the second in which its credential was revoked
            wait_until(trains_again(job, "disturbed"), SECONDS, "the training of a requeued job")
    assert status == [0]
    assert table("disturbed") == table("undisturbed")
    (log,) = Path("disturbed").glob("victims/*/log.txt")
    assert log.read_text(encoding="utf-8").count("Restored all states from the checkpoint") == 2


def test_a_job_refused_by_slurm_is_reported_on_one_line(
    slurm: Path, inside: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    head = SMALL[: SMALL.index("attacks:")]
    command = write_grid(inside, "nowhere", head + ONE, slurm_partition="nowhere")
    with running(*command, "refused_jobs", "--cluster", "slurm") as status:
        pass
    assert status == [2]
    assert "invalid partition specified: nowhere" in capfd.readouterr().err


def test_a_victim_of_a_grid_trains_on_two_nodes(slurm: Path, inside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")  # the nodes' names are unknown to the network
    several = "trainer: {num_nodes: 2, devices: 1, strategy: ddp, max_epochs: 1,"
    head = SMALL[: SMALL.index("attacks:")].replace("trainer: {", several).replace("max_epochs: 2, ", "")
    command = write_grid(inside, "nodes", head + ONE, nodes=2)
    with running(*command, "nodes", "--cluster", "slurm") as status:
        pass
    assert status == [0], [path.read_text() for path in Path("nodes").glob("*/*/log.txt")]
    (row,) = table("nodes")
    assert row["n_clean"] == "40"


def fit(*args: str, srun: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    line = ["srun", *srun, sys.executable, "-m", "lightning_backdoor", "fit", "-c", "data.yaml", *args]
    environment = {**os.environ, **settings(folder), "MASTER_ADDR": "127.0.0.1"}
    return subprocess.run(line, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False)


def test_two_tasks_of_srun_train_one_victim(slurm: Path, inside: Path) -> None:
    several = ("--trainer.devices", "2", "--trainer.strategy", "ddp")
    done = fit("--run_dir", "tasks", *several, srun=["--nodes=1", "--ntasks=2"], folder=inside)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in Path("tasks").iterdir()} == {
        "calibration.jsonl",
        "checkpoints",
        "config.yaml",
        "logs",
        "model",
        "run.lock",
    }
    assert [path.name for path in Path("tasks", "logs").iterdir()] == ["version_0"]
