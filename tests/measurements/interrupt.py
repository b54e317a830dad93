"""A small grid of real victims, killed with -9 at random moments and gone on with, against one left alone.

Run ``python -m tests.measurements.interrupt --kills 20``. It prints at which seconds the grid was killed, and whether
``results.csv`` is the same but for times, every victim and cell was written down as done once, and no file is left that
the other has not.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from lightning_backdoor.benchmark.table import TIMINGS
from tests.benchmark.grids import SMALL
from tests.support.workspace import make_workspace, settings

#: seconds into a command at which it is killed: starting takes some of them.
MOMENTS = (4.0, 20.0)


def start(folder: Path, output: str) -> subprocess.Popen[bytes]:
    line = [sys.executable, "-m", "lightning_backdoor", "benchmark", "--config", "grid.yaml", "--output", output]
    environment = {**os.environ, **settings(folder)}
    return subprocess.Popen(line, cwd=folder, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)


def table(output: Path) -> list[dict[str, str]]:
    with (output / "results.csv").open(encoding="utf-8", newline="") as file:
        return [{name: value for name, value in row.items() if name not in TIMINGS} for row in csv.DictReader(file)]


def done_once(output: Path) -> bool:
    lines = (output / "journal.jsonl").read_text(encoding="utf-8").splitlines()
    events = [event for event in map(json.loads, lines) if "error" not in event]
    return set(Counter((event["kind"], event["id"]) for event in events).values()) == {1}


def files(output: Path) -> set[str]:
    """Names, those apart that a resumed run numbers."""
    found = {path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file()}
    return {name for name in found if "/logs/version_" not in name}


def main() -> None:
    parser = argparse.ArgumentParser(description="A grid killed at random moments against one left alone.")
    parser.add_argument("--kills", type=int, default=20, help="how many")
    args = parser.parse_args()
    rng, kills, rounds = random.Random(0), 0, 0
    with tempfile.TemporaryDirectory() as scratch:
        folder = make_workspace(Path(scratch, "workspace"))
        (folder / "grid.yaml").write_text(SMALL.replace("seeds: [0]", "seeds: [0, 1]"), encoding="utf-8")
        assert start(folder, "whole").wait() == 0
        while kills < args.kills:
            rounds += 1
            output = f"killed-{rounds}"
            status: int | None = None
            while status != 0:
                process, moment = start(folder, output), rng.uniform(*MOMENTS)
                try:
                    status = process.wait(timeout=moment if kills < args.kills else None)
                    assert status == 0, status
                except subprocess.TimeoutExpired:
                    process.send_signal(signal.SIGKILL)
                    process.wait()
                    kills += 1
                    print(f"grid {rounds}, kill {kills} after {moment:.1f} s", flush=True)
            whole, killed = folder / "whole", folder / output
            print(
                f"grid {rounds}: the same table: {table(killed) == table(whole)}, each done once: {done_once(killed)}"
            )
            print(f"  files that only one has: {sorted(files(killed) ^ files(whole)) or 'none'}", flush=True)


if __name__ == "__main__":
    main()
