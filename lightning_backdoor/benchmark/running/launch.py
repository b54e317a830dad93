"""Where workers run: in this process, as processes of this machine, or as jobs of a cluster."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_backdoor.benchmark.grid import Cell, Grid, Victim, select
from lightning_backdoor.benchmark.running.journal import Event, Journal
from lightning_backdoor.benchmark.running.worker import PATIENCE, Worker
from lightning_backdoor.benchmark.wandb_runs import WandbRuns
from lightning_backdoor.errors import InputError, reason


def make_worker(
    grid: Grid,
    folder: Path,
    only: Sequence[str],
    launch: str,
    announce: Callable[[], None] = lambda: None,
    wandb_runs: WandbRuns | None = None,
) -> Worker:
    """A worker of a grid in a folder, with W&B runs of its own where the grid wants them and none are given."""
    if wandb_runs is None and grid.wandb is not None:
        wandb_runs = WandbRuns(grid.wandb, folder)
    record = None if wandb_runs is None else _Record(wandb_runs, folder)
    return Worker(folder, select(grid.cells, only), launch, announce, record)


class _Record:
    """Logs what is done to W&B."""

    def __init__(self, runs: WandbRuns, folder: Path) -> None:
        self.runs = runs
        self.folder = folder
        self.journal = Journal(folder / "journal.jsonl")

    def __call__(self, done: Victim | Cell, event: Event) -> None:
        if isinstance(done, Victim):
            self.runs.log_victim(done, self.folder / "victims" / done.id, event["digest"])
            return
        self.journal.refresh()
        victim = self.journal.get("victim", done.victim.id) or {}
        self.runs.log_cell(done, event["row"], self.folder / "cells" / done.id, victim["digest"])


class ClusterWorker:
    """What a job of a cluster does; preempted, it is put into the queue again as it is."""

    def __init__(self, grid: Path, folder: Path, only: Sequence[str], launch: str) -> None:
        self.grid = grid
        self.folder = folder
        self.only = only
        self.launch = launch

    def __call__(self) -> None:
        """Works until nothing is left; of several tasks of a job the first does."""
        if os.environ.get("SLURM_PROCID", "0") == "0":
            make_worker(Grid(self.grid), self.folder, self.only, self.launch).run()

    def checkpoint(self) -> Any:
        """Called by submitit before the job is preempted: the state is on disk at any moment."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def run_processes(
    grid: Path, folder: Path, only: Sequence[str], launch: str, jobs: int, wait: Callable[[], None]
) -> None:
    """Runs workers as processes, with a share of the cores and a GPU each where there are any.

    Args:
        grid: the file of the grid, which stays as it is.
        folder: of its output.
        only: conditions on the cells.
        launch: the workers' launch.
        jobs: how many.
        wait: called now and then.
    """
    line = [sys.executable, "-m", "lightning_backdoor", "benchmark", "--config", str(grid)]
    line += ["--output", str(folder), "--worker", launch, *(f"--only={condition}" for condition in only)]
    with (folder / "log.txt").open("ab") as log:
        workers = [
            subprocess.Popen(
                line, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=worker_environment(number, jobs)
            )
            for number in range(jobs)
        ]
        try:
            while any(worker.poll() is None for worker in workers):
                time.sleep(PATIENCE)
                wait()
        finally:
            for worker in workers:
                worker.terminate()
            for worker in workers:
                worker.wait()


def run_jobs(
    grid: Path,
    folder: Path,
    only: Sequence[str],
    launch: str,
    jobs: int,
    cluster: str,
    options: Mapping[str, Any],
    wait: Callable[[], None],
) -> None:
    """Runs workers as an array of jobs through submitit.

    Args:
        grid: the file of the grid, which stays as it is.
        folder: of its output; all machines see it.
        only: conditions on the cells.
        launch: the workers' launch.
        jobs: how many.
        cluster: ``slurm`` or ``local``, as submitit names them.
        options: of submitit's executor, such as ``slurm_partition``, ``timeout_min``, and ``slurm_max_num_timeout``,
            how often a job whose time is up is put into the queue again.
        wait: called now and then.

    Raises:
        InputError: submitit is not installed, or refuses an option.
    """
    try:
        import submitit
    except ImportError:
        raise InputError(
            "cluster", f"{cluster} needs submitit", "install it with: pip install 'lightning-backdoor[cluster]'"
        ) from None
    try:
        of_executor = {name: value for name, value in options.items() if name == "slurm_max_num_timeout"}
        executor = submitit.AutoExecutor(folder=folder / "submitit", cluster=cluster, **of_executor)
        executor.update_parameters(**{name: value for name, value in options.items() if name not in of_executor})
    except Exception as error:  # whatever it checks, it checks by its own exceptions
        raise InputError("cluster", f"submitit refuses {dict(options)} ({reason(error, 200)})") from None
    with executor.batch():
        handles = [executor.submit(ClusterWorker(grid, folder, only, launch)) for _ in range(jobs)]
    while not all(handle.done() for handle in handles):
        time.sleep(PATIENCE)
        wait()


def worker_environment(number: int, jobs: int) -> dict[str, str]:
    """Environment of one of several workers: its share of the cores, and a GPU where there are several."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    environment = {"OMP_NUM_THREADS": str(max(1, cores // jobs)), **os.environ}
    gpus = torch.cuda.device_count()
    if gpus > 1:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = visible.split(",") if visible else [str(gpu) for gpu in range(gpus)]
        environment["CUDA_VISIBLE_DEVICES"] = names[number % gpus]
    return environment
