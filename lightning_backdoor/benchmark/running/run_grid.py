"""One call of ``benchmark``: checks the grid, runs its workers, and writes the results."""

from __future__ import annotations

import argparse
import hashlib
import os
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path

from lightning_backdoor.benchmark.console import Progress, plan_text
from lightning_backdoor.benchmark.grid import Cell, Grid, select
from lightning_backdoor.benchmark.report.terminal import print_table, print_written
from lightning_backdoor.benchmark.running.journal import Journal, waited_for
from lightning_backdoor.benchmark.running.launch import Launch, run_jobs, run_processes
from lightning_backdoor.benchmark.running.run_command import check_cell
from lightning_backdoor.benchmark.running.worker import Worker
from lightning_backdoor.benchmark.wandb_runs import WandbRuns
from lightning_backdoor.benchmark.write_results import write_results
from lightning_backdoor.errors import InputError
from lightning_backdoor.files.atomic import write_whole
from lightning_backdoor.files.presets import preset_path


def run_grid(options: argparse.Namespace, folder: Path, command: str) -> int:
    """Runs a grid, or prints its plan; returns the exit status of ``benchmark``.

    Args:
        options: parsed options of ``benchmark``.
        folder: the grid's output folder.
        command: the whole command, for the log and the report.
    """
    grid = Grid(preset_path(options.config))
    wandb_runs = None if grid.wandb is None else WandbRuns(grid.wandb, folder)
    cells = select(grid.cells, options.only)
    journal = Journal(folder / "journal.jsonl")
    journal.refresh()
    if journal.path.exists() and not options.resume:
        raise InputError("output", f"{folder} holds results already", "give another folder, or leave out --no-resume")
    if options.dry_run:
        sys.stdout.write(plan_text(cells, journal, options.jobs))
        return 0
    _check([cell for cell in cells if journal.is_open("cell", cell.id)])
    launch = Launch(_keep(grid, folder, command), folder, options.only, secrets.token_hex(8))
    progress = Progress(cells, journal)
    jobs = min(options.jobs, progress.left())
    try:
        if options.cluster and jobs:
            run_jobs(launch, jobs, options.cluster, grid.cluster or {}, progress.look)
        elif options.jobs > 1 and jobs:
            run_processes(launch, jobs, progress.look)
        else:
            Worker(folder, cells, launch.name, progress.look, wandb_runs).run()
    finally:  # even after an interruption, the table has all that is done
        progress.look()
        results = write_results(grid, folder, command)
    if wandb_runs is not None:
        wandb_runs.log_summary(results)
    print_table(results)
    print_written(folder)
    ids, left = {cell.id for cell in cells}, progress.left()
    failed = sum(bool(row["error"]) for row in results.rows if row["cell"] in ids)
    if failed:
        sys.stdout.write(f"{failed} of {len(cells)} cells failed; cells/*/log.txt and victims/*/log.txt say why\n")
    if left:
        sys.stdout.write(
            f"{left} of {len(cells)} cells are left, since workers ended; run the same command to continue\n"
        )
    return 1 if failed or left else 0


def _check(cells: Sequence[Cell]) -> None:
    """Checks every model, and every attack and defense on every dataset, with the first seed that has it.

    Raises:
        InputError: something named in the grid does not exist or does not fit; the message names the cell.
    """
    checked: set[tuple[str, ...]] = set()
    for cell in cells:
        names = cell.names
        combinations = {("", "model", names["model"])}
        combinations |= {(names["dataset"], key, names[key]) for key in ("attack", "defense")}
        if not combinations <= checked:
            checked |= combinations
            try:
                check_cell(cell)
            except InputError as error:
                raise error.under(f"{cell.label}: {error.field}") from None


def _keep(grid: Grid, folder: Path, command: str) -> Path:
    """Writes the grid into its folder under a unique name, so that workers that start later use the same grid."""
    text = grid.as_yaml()
    path = folder / "grids" / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    with waited_for(folder / "log.txt") as log:
        os.write(log, f"{command}\n".encode())
        write_whole(path, text)
    return path
