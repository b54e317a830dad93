"""``benchmark``: runs a grid of datasets, models, attacks, defenses and seeds, and compares them."""

from __future__ import annotations

import argparse
import hashlib
import os
import secrets
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_backdoor.errors import InputError

if TYPE_CHECKING:
    from lightning_backdoor.benchmark.grid import Cell, Grid
    from lightning_backdoor.benchmark.running.launch import Launch
    from lightning_backdoor.benchmark.wandb_runs import WandbRuns


def parser() -> argparse.ArgumentParser:
    """Options of ``benchmark``."""
    options = argparse.ArgumentParser(
        "lightning-backdoor benchmark",
        description="Runs a grid of datasets, models, attacks, defenses and seeds. Each victim is trained once and"
        " shared by the defenses. The same command goes on where it was interrupted, and does nothing twice."
        " Writes results.csv, comparisons.csv and report.html.",
    )
    add = options.add_argument
    add("--config", required=True, help="the grid, a YAML file such as configs/benchmark/demo.yaml")
    add("--output", required=True, help="the folder that everything is written to")
    plan = "print cells, victims and an estimate, and stop there; classes and their arguments are not looked at"
    add("--dry-run", action="store_true", help=plan)
    only = "run only such cells: dataset, model, attack, defense or seed = a name, or names with commas between;"
    only += " repeatable, and then all must fit"
    add("--only", action="append", default=[], metavar="KEY=NAME", help=only)
    resume = "go on in a folder that holds results; --no-resume refuses such a folder"
    add("--resume", action=argparse.BooleanOptionalAction, default=True, help=resume)
    add("--jobs", type=int, default=1, help="number of workers (default: 1, this process)")
    cluster = "run the workers as jobs through submitit: on SLURM, or as it would there on this machine; the grid's"
    cluster += " cluster: holds submitit's options"
    add("--cluster", choices=["slurm", "local"], help=cluster)
    add("--worker", metavar="LAUNCH", help=argparse.SUPPRESS)  # how workers are started
    return options


def main(args: list[str]) -> int:
    """Runs ``benchmark``; returns the exit status, 1 if a cell failed.

    Raises:
        InputError: bad input; nothing is trained.
    """
    options = parser().parse_args(args)
    if options.jobs < 1:
        raise InputError("jobs", f"{options.jobs} is not a number of workers", "give at least 1")
    folder = Path(options.output).resolve()  # workers elsewhere have another working directory
    if folder.exists() and not folder.is_dir():
        raise InputError("output", f"{folder} is a file", "give a folder")

    from lightning_backdoor.benchmark.console import plan_text
    from lightning_backdoor.benchmark.grid import Grid, select
    from lightning_backdoor.benchmark.running.journal import Journal
    from lightning_backdoor.benchmark.running.launch import Launch
    from lightning_backdoor.benchmark.wandb_runs import WandbRuns
    from lightning_backdoor.files.presets import preset_path

    if options.worker:
        Launch(Path(options.config), folder, options.only, options.worker).work()
        return 0
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
    command = shlex.join(["lightning-backdoor", "benchmark", *args])
    launch = Launch(_keep(grid, folder, command), folder, options.only, secrets.token_hex(8))
    return _run(options, grid, cells, launch, command, wandb_runs)


def _check(cells: Sequence[Cell]) -> None:
    """Makes sure that what the axes name exists and fits together, before anything is trained.

    Every model, and every attack and defense on every dataset, is tried with the first seed that has it.

    Raises:
        InputError: it does not; names the cell.
    """
    from lightning_backdoor.benchmark.running.run_command import check_cell

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
    """Writes the grid into its folder under a name of its own, so that workers that start later find this grid."""
    from lightning_backdoor.benchmark.running.journal import waited_for
    from lightning_backdoor.files.atomic import write_whole

    text = grid.as_yaml()
    path = folder / "grids" / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    with waited_for(folder / "log.txt") as log:
        os.write(log, f"{command}\n".encode())
        write_whole(path, text)
    return path


def _run(
    options: argparse.Namespace,
    grid: Grid,
    cells: Sequence[Cell],
    launch: Launch,
    command: str,
    wandb: WandbRuns | None,
) -> int:
    from lightning_backdoor.benchmark.console import Progress
    from lightning_backdoor.benchmark.report.terminal import print_table, print_written
    from lightning_backdoor.benchmark.running.journal import Journal
    from lightning_backdoor.benchmark.running.launch import run_jobs, run_processes
    from lightning_backdoor.benchmark.running.worker import Worker
    from lightning_backdoor.benchmark.write_results import write_results

    folder = launch.folder
    progress = Progress(cells, Journal(folder / "journal.jsonl"))
    jobs = min(options.jobs, progress.left())
    try:
        if options.cluster and jobs:
            run_jobs(launch, jobs, options.cluster, grid.cluster or {}, progress.look)
        elif options.jobs > 1 and jobs:
            run_processes(launch, jobs, progress.look)
        else:
            Worker(folder, cells, launch.name, progress.look, wandb).run()
    finally:  # interrupted or not, what is done is in the table
        progress.look()
        results = write_results(grid, folder, command)
    if wandb is not None:
        wandb.log_summary(results)
    print_table(results)
    print_written(folder)
    ids = {cell.id for cell in cells}
    failed = sum(bool(row["error"]) for row in results.rows if row["cell"] in ids)
    left = progress.left()
    if failed:
        sys.stdout.write(f"{failed} of {len(cells)} cells failed; cells/*/log.txt and victims/*/log.txt say why\n")
    if left:
        sys.stdout.write(f"{left} of {len(cells)} cells are left, since workers ended; the same command goes on\n")
    return 1 if failed or left else 0
