"""A small grid of real victims that is killed by ``kill -9`` at random moments and resumed, against an undisturbed one.

Run ``python -m tests.measurements.interrupt --kills 20``. It prints at which seconds the grid was killed, and whether
``results.csv`` is the same except for times, each victim and cell was recorded as done once, and both grids leave the
same files.
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

#: the earliest and the latest second of a command at which it is killed; starting takes some of them.
KILL_SECONDS = (4.0, 20.0)


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
    """Names of all files, except for logs, of which a resumed run has one per attempt."""
    names = {path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file()}
    return {name for name in names if "/logs/version_" not in name}


def main() -> None:
    parser = argparse.ArgumentParser(description="A grid killed at random moments against an undisturbed one.")
    parser.add_argument("--kills", type=int, default=20, help="number of kills")
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
                process, second = start(folder, output), rng.uniform(*KILL_SECONDS)
                try:
                    status = process.wait(timeout=second if kills < args.kills else None)
                    assert status == 0, status
                except subprocess.TimeoutExpired:
                    process.send_signal(signal.SIGKILL)
                    process.wait()
                    kills += 1
                    print(f"grid {rounds}, kill {kills} after {second:.1f} s", flush=True)
            whole, killed = folder / "whole", folder / output
            print(f"grid {rounds}: same table: {table(killed) == table(whole)}, each done once: {done_once(killed)}")
            print(f"  files that only one of them has: {sorted(files(killed) ^ files(whole)) or 'none'}", flush=True)


if __name__ == "__main__":
    main()
