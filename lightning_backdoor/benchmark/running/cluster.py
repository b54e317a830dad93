"""Workers as jobs of a cluster, through submitit: submitting them, waiting for them, and their signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

from lightning_backdoor.benchmark.running.worker import PATIENCE
from lightning_backdoor.commands.signals import ENDING, Ended
from lightning_backdoor.errors import InputError, one_line, reason

#: the shortest and the longest time between two questions to SLURM, in seconds.
QUEUE_SECONDS = (2.0, 30.0)
#: time that jobs on this machine have to end after a signal, in seconds.
ENDING_SECONDS = 10.0


def run_jobs(
    work: Any,
    folder: Path,
    jobs: int,
    cluster: str,
    options: Mapping[str, Any],
    wait: Callable[[], None],
) -> None:
    """Runs workers as an array of jobs through submitit; calls ``wait`` repeatedly until all have ended.

    If this process is interrupted, the jobs are cancelled.

    Args:
        work: what a job runs: a callable that can be pickled, with the method ``checkpoint`` of submitit.
        folder: submitit's folder, visible from all machines.
        jobs: number of jobs.
        cluster: ``slurm`` or ``local``, as submitit names them.
        options: options of submitit's executor, such as ``slurm_partition``, ``timeout_min``, and
            ``slurm_max_num_timeout``, the number of times that a job is queued again after it runs out of time.
        wait: called repeatedly until all jobs are done.

    Raises:
        InputError: submitit is not installed, or it or the cluster rejects an option.
    """
    try:
        import submitit
    except ImportError:
        raise InputError(
            "cluster", f"{cluster} needs submitit", "install it with: pip install 'lightning-backdoor[cluster]'"
        ) from None
    parameters = dict(options)
    for_executor = {name: parameters.pop(name) for name in ("slurm_max_num_timeout",) if name in parameters}
    try:
        executor = submitit.AutoExecutor(folder=folder, cluster=cluster, **for_executor)
        executor.update_parameters(**parameters)
        with executor.batch():
            handles = [executor.submit(work) for _ in range(jobs)]
    except Exception as error:  # submitit raises its own exceptions for invalid options
        raise InputError("cluster", f"submitit refuses {dict(options)} ({reason(error, 200)})") from None
    ended = Queue(handles).ended if cluster == "slurm" else lambda: all(handle.done() for handle in handles)
    try:
        while not ended():
            time.sleep(PATIENCE)
            wait()
    except BaseException:
        for handle in handles:
            _cancel(handle, cluster)
        raise


class Queue:
    """Whether jobs have ended, by their results, and by SLURM's queue for jobs that end without one.

    The queue lists jobs that wait, run, or are queued again, with and without SLURM's accounting, on which submitit's
    own question depends: without it, a cancelled job would be waited for for ever.

    Args:
        handles: the jobs, as submitit returns them.
    """

    def __init__(self, handles: Sequence[Any]) -> None:
        self.results = [handle.paths.result_pickle for handle in handles]
        self.ids = sorted({handle.job_id.partition("_")[0] for handle in handles})
        self.started = self.asked = time.monotonic()
        self.complained = False

    def ended(self) -> bool:
        """Whether all jobs have ended. SLURM is asked less often the longer the jobs run."""
        if all(result.exists() for result in self.results):
            return True
        now = time.monotonic()
        shortest, longest = QUEUE_SECONDS
        if now - self.asked < min(longest, max(shortest, (now - self.started) / 10)):
            return False
        self.asked = now
        return not self._queued()

    def _queued(self) -> bool:
        """Whether the queue lists any of the jobs; also True if SLURM does not answer, which is reported once."""
        try:
            answer = _squeue("%i", ",".join(self.ids), timeout=60)
        except (OSError, subprocess.TimeoutExpired) as error:
            problem = str(error)
        else:
            if answer.returncode == 0:
                return bool(answer.stdout.strip())
            if "Invalid job id" in answer.stderr:  # SLURM forgets ended jobs after some minutes
                return False
            problem = answer.stderr
        if not self.complained:
            self.complained = True
            sys.stderr.write(f"SLURM does not say which jobs are left ({one_line(problem)[:200]}); waiting\n")
        return True


def _cancel(handle: Any, cluster: str) -> None:
    """Cancels a job; waits for its end if it runs on this machine."""
    if cluster == "slurm":
        with suppress(OSError):
            handle.cancel(check=False)
        return
    with suppress(ProcessLookupError):
        os.kill(int(handle.job_id), signal.SIGTERM)
    if not _ends(handle):
        handle.cancel(check=False)  # kills the job, which leaves the processes that it started
        _ends(handle)


def _ends(handle: Any) -> bool:
    """Waits for the end of a job; returns whether it has ended in time."""
    stop = time.monotonic() + ENDING_SECONDS
    while not handle.done() and time.monotonic() < stop:
        time.sleep(0.05)
    return bool(handle.done())


def set_job_signals() -> None:
    """Makes SIGTERM and SIGHUP end a job, which submitit does not; submitit's own signal queues it again.

    On SLURM, SIGTERM may also announce a preemption: if SLURM is not ending the job itself, it is queued again.
    """
    received = False

    def end(number: int, frame: FrameType | None) -> None:
        nonlocal received
        if received:
            return
        received = True
        if number == signal.SIGTERM and os.environ.get("SUBMITIT_EXECUTOR") == "slurm" and _runs():
            from submitit import JobEnvironment

            signal.raise_signal(getattr(signal, f"SIG{JobEnvironment.USR_SIG}"))  # does not return
        raise Ended(number)

    for number in ENDING:
        signal.signal(number, end)


def _runs() -> bool:
    """Whether SLURM lets this job go on: it has not been cancelled, and its time is not over."""
    try:
        return _squeue("%T", os.environ["SLURM_JOB_ID"], timeout=10).stdout.strip() == "RUNNING"
    except (OSError, subprocess.TimeoutExpired):
        return False


def _squeue(columns: str, jobs: str, timeout: float) -> subprocess.CompletedProcess[str]:
    """Asks SLURM's queue for some columns of some jobs, in squeue's notation."""
    # the user's variables may select other jobs
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SQUEUE_")}
    line = ["squeue", "--noheader", f"--format={columns}", f"--jobs={jobs}"]
    return subprocess.run(line, env=environment, capture_output=True, text=True, timeout=timeout, check=False)
