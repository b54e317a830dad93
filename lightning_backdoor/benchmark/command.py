"""``benchmark``: runs a grid of datasets, models, attacks, defenses and seeds, and compares them."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from lightning_backdoor.commands.parsing.early_checks import check_grid
from lightning_backdoor.commands.parsing.option_parser import OptionParser
from lightning_backdoor.commands.signals import when_ended
from lightning_backdoor.errors import InputError, escaped
from lightning_backdoor.files.names import expanded


def parser() -> OptionParser:
    """The options of ``benchmark``."""
    options = OptionParser(
        "lightning-backdoor benchmark",
        description="Runs a grid of datasets, models, attacks, defenses and seeds. Each victim is trained once and"
        " shared by the defenses. The same command continues an interrupted grid, and does nothing twice."
        " Writes results.csv, comparisons.csv and report.html.",
    )
    add = options.add_argument
    add("--config", required=True, help="the grid, a YAML file such as configs/benchmark/demo.yaml")
    add("--output", required=True, help="the folder that everything is written to")
    plan = "print cells, victims and a time estimate only; classes and their arguments are not checked"
    add("--dry-run", action="store_true", help=plan)
    only = "run only the cells whose dataset, model, attack, defense or seed has this name, or one of several names,"
    only += " separated by commas; if repeated, all conditions must hold"
    add("--only", action="append", default=[], metavar="KEY=NAME", help=only)
    resume = "continue in a folder that has results; --no-resume refuses such a folder"
    add("--resume", action=argparse.BooleanOptionalAction, default=True, help=resume)
    add("--jobs", type=int, default=1, help="number of workers (default: 1, this process)")
    cluster = "run the workers as jobs through submitit, on SLURM or, to try it, on this machine; submitit's options"
    cluster += " are under cluster: in the grid"
    add("--cluster", choices=["slurm", "local"], help=cluster)
    add("--worker", metavar="LAUNCH", help=argparse.SUPPRESS)  # internal: starts a worker
    return options


def main(args: list[str]) -> int:
    """Runs ``benchmark``; returns the exit status, 1 if a cell failed.

    Raises:
        InputError: the input is invalid; nothing is trained.
        Ended: SIGTERM or SIGHUP ended the command, after it wrote the results of all that is done.
    """
    options = parser().parse_args(args)
    if options.jobs < 1:
        raise InputError("jobs", f"{options.jobs} is not a number of workers", "give at least 1")
    folder = Path(expanded(options.output)).resolve()  # workers may have another working directory
    if folder.exists() and not folder.is_dir():
        raise InputError("output", f"{folder} is a file", "give a folder")
    check_grid(options.config)
    if not (options.worker or options.dry_run):
        when_ended(lambda: "what is done is kept; run the same command to continue")
        sys.stdout.write(f"loading {escaped(options.config)} and the libraries\n")  # which takes seconds
        sys.stdout.flush()
    from lightning_backdoor.benchmark.running.run_grid import run_grid, work

    if options.worker:
        work(Path(expanded(options.config)), folder, options.only, options.worker)
        return 0
    return run_grid(options, folder, shlex.join(["lightning-backdoor", "benchmark", *args]))
