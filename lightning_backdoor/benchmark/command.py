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
    from lightning_backdoor.benchmark.wandb_runs import WandbRuns


def parser() -> argparse.ArgumentParser:
    """Options of ``benchmark``."""
    options = argparse.ArgumentParser(
        "lightning-backdoor benchmark",
        description="Runs a grid of datasets, models, attacks, defenses and seeds. Each victim is trained once and"
        " shared by the defenses. The same command goes on where it was interrupted, and does nothing twice."
        " Writes results.csv, comparisons.csv and report.html.",
    )
    options.add_argument("--config", required=True, help="the grid, a YAML file such as configs/benchmark/demo.yaml")
    options.add_argument("--output", required=True, help="the folder that everything is written to")
    options.add_argument(
        "--dry-run",
        action="store_true",
        help="print cells, victims and an estimate, and stop there; classes and their arguments are not looked at",
    )
    options.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="KEY=NAME",
        help="run only such cells: dataset, model, attack, defense or seed = a name, or names with commas between;"
        " repeatable, and then all must fit",
    )
    options.add_argument(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="go on in a folder that holds results; --no-resume refuses such a folder",
    )
    options.add_argument("--jobs", type=int, default=1, help="workers at a time (default: 1, this process)")
    options.add_argument(
        "--cluster",
        choices=["slurm", "local"],
        help="run the workers as jobs through submitit: on SLURM, or as it would there on this machine; the grid's"
        " cluster: holds submitit's options",
    )
    options.add_argument("--worker", metavar="LAUNCH", help=argparse.SUPPRESS)  # how workers are started
    return options


def main(args: list[str]) -> int:
    """Runs ``benchmark``; returns the exit status, 1 if a cell failed.

    Raises:
        InputError: bad input; nothing is trained.
    """
    options = parser().parse_args(args)
    if options.jobs < 1:
        raise InputError("jobs", f"{options.jobs} do no work", "give at least 1")
    folder = Path(options.output).resolve()  # workers elsewhere have another working directory
    if folder.exists() and not folder.is_dir():
        raise InputError("output", f"{folder} is a file", "give a folder")

    from lightning_backdoor.benchmark.console import is_open, plan_text
    from lightning_backdoor.benchmark.grid import Grid, select
    from lightning_backdoor.benchmark.running.journal import Journal
    from lightning_backdoor.benchmark.wandb_runs import WandbRuns

    grid = Grid(Path(options.config))
    if options.worker:
        from lightning_backdoor.benchmark.running.launch import make_worker

        make_worker(grid, folder, options.only, options.worker).run()
        return 0
    wandb_runs = None if grid.wandb is None else WandbRuns(grid.wandb, folder)
    cells = select(grid.cells, options.only)
    journal = Journal(folder / "journal.jsonl")
    journal.refresh()
    if journal.path.exists() and not options.resume:
        raise InputError("output", f"{folder} holds results already", "give another folder, or leave out --no-resume")
    if options.dry_run:
        sys.stdout.write(plan_text(cells, journal, options.jobs))
        return 0
    command = shlex.join(["lightning-backdoor", "benchmark", *args])
    _check([cell for cell in cells if is_open(journal, "cell", cell.id)])
    kept = _begin(grid, folder, command)
    return _run(options, grid, kept, cells, folder, command, wandb_runs)


def _begin(grid: Grid, folder: Path, command: str) -> Path:
    """The folder, with the grid in it under a name of its own, so that workers begun later still find theirs."""
    from lightning_backdoor.benchmark.running.journal import waited_for
    from lightning_backdoor.files.atomic import write_whole

    text = grid.as_yaml()
    kept = folder / "grids" / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.yaml"
    kept.parent.mkdir(parents=True, exist_ok=True)
    with waited_for(folder / "log.txt") as log:
        os.write(log, f"{command}\n".encode())
        write_whole(kept, text)
    return kept


def _check(cells: Sequence[Cell]) -> None:
    """Makes sure that what the axes name can be made and belongs together, before anything is trained.

    Every model, and every attack and defense on every dataset, is tried with the first seed that has it.

    Raises:
        InputError: it cannot; names the cell.
    """
    import tempfile

    from lightning_backdoor.benchmark.console import place
    from lightning_backdoor.benchmark.grid import merged
    from lightning_backdoor.benchmark.running.run_command import check_stage, write_config

    seen: set[tuple[str, ...]] = set()
    for cell in cells:
        names = cell.names
        new: set[tuple[str, ...]] = {("model", names["model"])}
        new |= {(names["dataset"], key, names[key]) for key in ("attack", "defense")}
        if new <= seen:
            continue
        seen |= new
        with tempfile.TemporaryDirectory() as scratch:
            config = Path(scratch, "config.yaml")
            write_config(config, merged(cell.victim.config, cell.config))
            try:
                check_stage(config, Path(scratch, "run"))
            except InputError as error:
                raise error.under(f"{place(cell)}: {error.field}") from None


def _run(
    options: argparse.Namespace,
    grid: Grid,
    kept: Path,
    cells: Sequence[Cell],
    folder: Path,
    command: str,
    wandb_runs: WandbRuns | None,
) -> int:
    from lightning_backdoor.benchmark.console import Progress
    from lightning_backdoor.benchmark.report.terminal import print_table, print_written
    from lightning_backdoor.benchmark.running.journal import Journal
    from lightning_backdoor.benchmark.running.launch import make_worker, run_jobs, run_processes
    from lightning_backdoor.benchmark.write_results import write_results

    launch = secrets.token_hex(8)
    progress = Progress(cells, Journal(folder / "journal.jsonl"))
    jobs = min(options.jobs, progress.left())
    try:
        if options.cluster and jobs:
            run_jobs(kept, folder, options.only, launch, jobs, options.cluster, grid.cluster or {}, progress.look)
        elif options.jobs > 1 and jobs:
            run_processes(kept, folder, options.only, launch, jobs, progress.look)
        else:
            make_worker(grid, folder, options.only, launch, progress.look, wandb_runs).run()
    finally:  # interrupted or not, what is done is in the table
        progress.look()
        results = write_results(grid, folder, command)
    if wandb_runs is not None:
        wandb_runs.log_summary(results)
    print_table(results)
    print_written(folder)
    chosen = {cell.id for cell in cells}
    failed = sum(bool(row["error"]) for row in results.rows if row["cell"] in chosen)
    if failed:
        sys.stdout.write(f"{failed} of {len(cells)} cells failed; cells/*/log.txt and victims/*/log.txt say why\n")
    if progress.left():
        sys.stdout.write(
            f"{progress.left()} of {len(cells)} cells are left, since workers ended; the same command goes on\n"
        )
    return 1 if failed or progress.left() else 0
