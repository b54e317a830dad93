"""Starting the workers of a grid, as processes of this machine or as jobs of a cluster."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lightning_backdoor.benchmark.grid import Grid, select
from lightning_backdoor.benchmark.running.worker import PATIENCE, Worker
from lightning_backdoor.benchmark.wandb_runs import WandbRuns
from lightning_backdoor.errors import InputError, reason


class Launch(NamedTuple):
    """One call of ``benchmark``: the data that its workers need, callable as a cluster job.

    Attributes:
        grid: path of the grid's file, which does not change.
        folder: the grid's output folder, visible from all machines.
        only: conditions on the cells.
        name: name of the launch; see :class:`Worker`.
    """

    grid: Path
    folder: Path
    only: list[str]
    name: str

    def __call__(self) -> None:
        """Runs a worker; of several tasks of a job, only the first one does."""
        if os.environ.get("SLURM_PROCID", "0") == "0":
            work(*self)

    def checkpoint(self) -> Any:
        """Queues the job again, unchanged, since its state is on disk; submitit calls it before a preemption."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def work(grid_file: Path, folder: Path, only: list[str], launch: str) -> None:
    """Runs a worker of a :class:`Launch` until no cell is left."""
    grid = Grid(grid_file)
    wandb_runs = None if grid.wandb is None else WandbRuns(grid.wandb, folder)
    Worker(folder, select(grid.cells, only), launch, wandb_runs=wandb_runs).run()


def run_processes(launch: Launch, jobs: int, wait: Callable[[], None]) -> None:
    """Runs workers as processes, each with a share of cores and GPUs; calls ``wait`` until all have ended."""
    line = [sys.executable, "-m", "lightning_backdoor", "benchmark", "--config", str(launch.grid)]
    line += ["--output", str(launch.folder), "--worker", launch.name, *(f"--only={rule}" for rule in launch.only)]
    with (launch.folder / "log.txt").open("ab") as log:
        workers = [
            subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=worker_environment(i, jobs))
            for i in range(jobs)
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


def run_jobs(launch: Launch, jobs: int, cluster: str, options: Mapping[str, Any], wait: Callable[[], None]) -> None:
    """Runs workers as an array of jobs through submitit; calls ``wait`` until all have ended.

    Args:
        launch: the workers' launch.
        jobs: number of workers.
        cluster: ``slurm`` or ``local``, as submitit names them.
        options: options of submitit's executor, such as ``slurm_partition``, ``timeout_min``, and
            ``slurm_max_num_timeout``, the number of times that a job is queued again after it runs out of time.
        wait: called repeatedly until all jobs are done.

    Raises:
        InputError: submitit is not installed, or rejects an option.
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
        executor = submitit.AutoExecutor(folder=launch.folder / "submitit", cluster=cluster, **for_executor)
        executor.update_parameters(**parameters)
    except Exception as error:  # submitit raises its own exceptions for invalid options
        raise InputError("cluster", f"submitit refuses {dict(options)} ({reason(error, 200)})") from None
    with executor.batch():
        handles = [executor.submit(launch) for _ in range(jobs)]
    while not all(handle.done() for handle in handles):
        time.sleep(PATIENCE)
        wait()


def worker_environment(number: int, jobs: int) -> dict[str, str]:
    """Environment variables of one of several workers: its share of the cores, and one GPU if there are several."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    environment = {"OMP_NUM_THREADS": str(max(1, cores // jobs)), **os.environ}
    gpus = torch.cuda.device_count()
    if gpus > 1:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = visible.split(",") if visible else [str(gpu) for gpu in range(gpus)]
        environment["CUDA_VISIBLE_DEVICES"] = names[number % gpus]
    return environment
