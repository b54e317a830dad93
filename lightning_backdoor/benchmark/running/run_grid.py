"""One call of ``benchmark``: checks the grid, runs its workers, here or elsewhere, and writes the results."""

from __future__ import annotations

import argparse
import hashlib
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lightning_backdoor.benchmark.console import Progress, damage_text, plan_text, print_table, warn
from lightning_backdoor.benchmark.disk_space import disk_text
from lightning_backdoor.benchmark.grid import Cell, Grid, all_victims, select
from lightning_backdoor.benchmark.running.cluster import run_jobs, set_job_signals
from lightning_backdoor.benchmark.running.journal import Journal
from lightning_backdoor.benchmark.running.products import Products
from lightning_backdoor.benchmark.running.run_command import check_cell
from lightning_backdoor.benchmark.running.shares import devices_of, worker_environments
from lightning_backdoor.benchmark.running.worker import PATIENCE, Worker
from lightning_backdoor.benchmark.wandb_runs import WandbRuns
from lightning_backdoor.benchmark.write_results import write_results
from lightning_backdoor.commands.quick_imports import quick_imports
from lightning_backdoor.commands.signals import when_ended
from lightning_backdoor.errors import InputError, escaped
from lightning_backdoor.files.atomic import write_whole
from lightning_backdoor.files.locking import lock
from lightning_backdoor.files.presets import preset_path
from lightning_backdoor.outputs.progress import tracked

#: time that workers on this machine have to end after a signal, in seconds.
ENDING_SECONDS = 10.0


def run_grid(options: argparse.Namespace, folder: Path, command: str) -> int:
    """Runs a grid, or prints its plan; returns the exit status of ``benchmark``.

    Args:
        options: parsed options of ``benchmark``.
        folder: the grid's output folder.
        command: the whole command, for the log and the report.
    """
    grid = Grid(preset_path(options.config), folder)
    wandb_runs = None if grid.wandb is None else WandbRuns(grid.wandb, folder)
    cells = select(grid.cells, options.only)
    journal = Journal(folder / "journal.jsonl", warn)
    journal.refresh()
    if journal.path.exists() and not options.resume:
        raise InputError("output", f"{folder} holds results already", "give another folder, or leave out --no-resume")
    products = Products(folder, journal)
    damaged = products.forget_damaged(cells)
    if options.dry_run:
        to_train = [victim for id, victim in all_victims(cells).items() if journal.is_open("victim", id)]
        sys.stdout.write(plan_text(cells, journal, options.jobs, damaged) + disk_text(to_train, options.jobs))
        return 0
    when_ended(lambda: _left(cells, journal, folder))
    to_run = [cell for cell in cells if journal.is_open("cell", cell.id)]
    sys.stdout.write(f"{len(cells)} cells, {len(all_victims(cells))} victims\n")
    sys.stdout.flush()
    _check(to_run)
    launch = Launch(_keep(grid, folder, command), folder, options.only, secrets.token_hex(8))
    for work in products.discard(cells, damaged, launch.name):
        sys.stdout.write(damage_text(work, damaged[work.id]))
    progress = Progress(cells, journal, options.jobs)
    jobs = min(options.jobs, progress.left())
    in_processes = options.jobs > 1 and jobs and not options.cluster
    environments = worker_environments(jobs, devices_of(to_run)) if in_processes else []
    try:
        if options.cluster and jobs:
            run_jobs(launch, folder / "submitit", jobs, options.cluster, grid.cluster or {}, progress.look)
        elif environments:
            run_processes(launch, environments, progress.look)
        else:
            Worker(folder, cells, launch.name, progress.look, wandb_runs).run()
    finally:  # even after an interruption, the table has all that is done
        progress.look()
        results = write_results(grid, folder, command)
    if wandb_runs is not None:
        wandb_runs.log_summary(results)
    print_table(results, folder)
    errors = {row["cell"]: row["error"] for row in results.rows}
    failed = sum(bool(errors.get(cell.id)) for cell in cells)
    left = sum(cell.id not in errors for cell in cells)
    if failed:
        sys.stdout.write(f"{failed} of {len(cells)} cells failed; cells/*/log.txt and victims/*/log.txt say why\n")
    if left:
        sys.stdout.write(
            f"{left} of {len(cells)} cells are left, since workers ended; run the same command to continue\n"
        )
        if options.cluster:
            sys.stdout.write("submitit/*_log.err says how they ended\n")
    return 1 if failed or left else 0


def _left(cells: Sequence[Cell], journal: Journal, folder: Path) -> str:
    """What a grid leaves that is ended now."""
    journal.refresh()
    done = sum(not journal.is_open("cell", cell.id) for cell in cells)
    return f"{done} of {len(cells)} cells are done and kept in {escaped(str(folder))}; run the same command to continue"


def _check(cells: Sequence[Cell]) -> None:
    """Checks every model, and every attack and defense on every dataset, in the first cell that has it.

    A checkpoint is checked with every attack on every dataset, since it has classes, and the trigger of an attack.

    Raises:
        InputError: something named in the grid does not exist or does not fit; the message names the cell.
    """
    if not cells:
        return
    with quick_imports():
        from lightning_backdoor.data.kept import Kept

    checked: set[tuple[str, ...]] = set()
    kept = Kept()
    for cell in tracked(cells, "checking models, attacks and defenses", "cells"):
        dataset, model, attack, defense, _ = cell.names.values()
        combinations = {("model", model), ("attack", attack, dataset), ("defense", defense, dataset)}
        if cell.victim.line[0].checkpoint:
            combinations.add(("checkpoint", model, attack, dataset))
        if not combinations <= checked:
            checked |= combinations
            try:
                check_cell(cell, kept)
            except InputError as error:
                raise error.under(f"{cell.label}: {error.field}") from None


def _keep(grid: Grid, folder: Path, command: str) -> Path:
    """Writes the grid into its folder, named by its hash, so that workers that start later use the same grid."""
    text = grid.as_yaml()
    path = folder / "grids" / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    with (folder / "log.txt").open("ab") as log:
        lock(log)
        log.write(f"{escaped(command)}\n".encode())
        write_whole(path, text)
    return path


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
        set_job_signals()
        if os.environ.get("SLURM_PROCID", "0") == "0":
            work(*self)

    def checkpoint(self) -> Any:
        """Queues the job again, unchanged, since its state is on disk; submitit calls it before a preemption."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def work(grid_file: Path, folder: Path, only: list[str], launch: str) -> None:
    """Runs a worker of a :class:`Launch` until no cell is left."""
    grid = Grid(grid_file, folder)
    wandb_runs = None if grid.wandb is None else WandbRuns(grid.wandb, folder)
    Worker(folder, select(grid.cells, only), launch, wandb_runs=wandb_runs).run()


def run_processes(launch: Launch, environments: Sequence[dict[str, str]], wait: Callable[[], None]) -> None:
    """Runs a worker as a process in each environment; calls ``wait`` again and again until they end."""
    line = [sys.executable, "-P", "-m", "lightning_backdoor", "benchmark", "--config", str(launch.grid)]
    line += ["--output", str(launch.folder), "--worker", launch.name, *(f"--only={rule}" for rule in launch.only)]
    workers: list[subprocess.Popen[bytes]] = []
    with (launch.folder / "log.txt").open("ab") as log:
        try:
            for environment in environments:
                workers.append(
                    subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)
                )
            while any(worker.poll() is None for worker in workers):
                time.sleep(PATIENCE)
                wait()
        finally:
            for worker in workers:
                worker.terminate()
            for worker in workers:
                try:
                    worker.wait(timeout=ENDING_SECONDS)
                except subprocess.TimeoutExpired:
                    worker.kill()
                    worker.wait()
