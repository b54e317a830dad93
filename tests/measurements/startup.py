"""How long it takes to start: importing the package, commands that need no model, and a grid up to its first victim.

Run ``python -m tests.measurements.startup``. Each command runs in a process of its own, in a folder with a tiny model
and a small grid; beside it stands what a Python takes that does nothing.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from tests.benchmark.grids import SMALL
from tests.measurements.pairs import load_average
from tests.support.workspace import make_workspace, settings

#: options of commands that need no model, and the seconds that are aimed at, bare Python included.
COMMANDS = {
    "fit --help": 1.0,
    "list": 1.0,
    "fit --config data.yaml --model.poison_rat 1": 1.0,  # reported as a mistake
    "benchmark --config grid.yaml --output planned --dry-run": 1.0,
}
IMPORT_SECONDS, FIRST_VICTIM_SECONDS = 0.05, 10.0


class Start(NamedTuple):
    """One start: its seconds per round, those of a bare Python in the same round, and the target.

    Attributes:
        title: what is started.
        target: of the seconds, or of the seconds beyond bare Python.
        beyond: whether bare Python is left out of the target.
        seconds: per round, with bare Python's.
    """

    title: str
    target: float
    beyond: bool
    seconds: list[tuple[float, float]]


def of_process(folder: Path, *command: str) -> float:
    """Seconds until a command has ended, whatever its status."""
    started = time.perf_counter()
    subprocess.run([sys.executable, *command], cwd=folder, env=environment(folder), capture_output=True)
    return time.perf_counter() - started


def until_first_victim(folder: Path) -> float:
    """Seconds from the start of a grid to the event that its first victim has begun; the grid is then ended.

    Raises:
        RuntimeError: the grid ended without one.
    """
    with tempfile.TemporaryDirectory(dir=folder) as output:
        journal = Path(output, "journal.jsonl")
        command = ["-m", "lightning_backdoor", "benchmark", "--config", "grid.yaml", "--output", output]
        started = time.perf_counter()
        grid = subprocess.Popen([sys.executable, *command], cwd=folder, env=environment(folder), stdout=subprocess.PIPE)
        try:
            while not (journal.exists() and "begun victim" in journal.read_text(encoding="utf-8")):
                if grid.poll() is not None:
                    raise RuntimeError(f"the grid ended with status {grid.returncode} before its first victim")
                time.sleep(0.005)
            return time.perf_counter() - started
        finally:
            grid.kill()
            grid.communicate()


def environment(folder: Path) -> dict[str, str]:
    return {**os.environ, **settings(folder)}


def startup(rounds: int) -> list[Start]:
    """All starts, measured in turn in each round."""
    with tempfile.TemporaryDirectory() as parent:
        folder = make_workspace(Path(parent, "workspace"))
        (folder / "grid.yaml").write_text(SMALL, encoding="utf-8")
        runs: dict[str, Callable[[], float]] = {
            "import lightning_backdoor": partial(of_process, folder, "-c", "import lightning_backdoor"),
            **{line: partial(of_process, folder, "-m", "lightning_backdoor", *line.split()) for line in COMMANDS},
            "benchmark, to its first victim": partial(until_first_victim, folder),
        }
        targets = [IMPORT_SECONDS, *COMMANDS.values(), FIRST_VICTIM_SECONDS]
        starts = [
            Start(title, target, target == IMPORT_SECONDS, []) for title, target in zip(runs, targets, strict=True)
        ]
        for run in runs.values():  # files are read from the disk once before
            run()
        for _ in range(rounds):
            bare = of_process(folder, "-c", "pass")
            for start, run in zip(starts, runs.values(), strict=True):
                start.seconds.append((run(), bare))
    return starts


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=5)
    args = options.parse_args()
    before = load_average()
    starts = startup(args.rounds)
    caption = f"medians of {args.rounds} rounds; load average {before:.1f} before, {load_average():.1f} after"
    table = Table(title="Seconds to start", caption=caption)
    for heading in ("start", "seconds", "bare Python", "beyond it", "target"):
        table.add_column(heading, justify="left" if heading == "start" else "right")
    for title, target, beyond, seconds in starts:
        whole, bare = (statistics.median(side) for side in zip(*seconds, strict=True))
        more = statistics.median(each - python for each, python in seconds)
        table.add_row(title, *(f"{value:.3f}" for value in (whole, bare, more)), f"{target:g}{' beyond' * beyond}")
    Console(width=None if sys.stdout.isatty() else 120).print(table)


if __name__ == "__main__":
    main()
