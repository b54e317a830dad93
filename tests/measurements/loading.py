"""Time and peak memory of loading a csv file of a million rows, by this checkout and by another, in turn.

    python -m tests.measurements.loading OTHER_CHECKOUT

Each checkout loads the file in a new process; what ``datasets`` caches is removed before, so that an edited file is
measured. Printed are the medians over the rounds, and their ratios.
"""

from __future__ import annotations

import argparse
import csv
import os
import random
import statistics
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

WORDS = ("the", "a", "film", "story", "good", "bad", "actors", "music", "is", "with", "plot", "scene", "and", "never")
#: loads the file named by the first argument; prints the seconds that this takes, and the process's peak memory in MB.
LOAD = """
import resource, sys, time
from lightning_backdoor.data.source import Source, load_source
start = time.perf_counter()
loaded = load_source(Source(sys.argv[1]))
print(time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def write(path: Path, rows: int) -> None:
    """Writes a csv file of reviews of 5 to 30 words, with an id, in two classes."""
    rng = random.Random(0)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("id", "text", "label"))
        for i in range(rows):
            text = " ".join(rng.choices(WORDS, k=rng.randint(5, 30)))
            writer.writerow((i, f"{text}, and so on" if i % 3 == 0 else text, i % 2))


def load(checkout: Path, file: Path) -> tuple[float, float]:
    """Seconds and peak memory in MB of a process that loads the file by a checkout's code."""
    with TemporaryDirectory() as cache:
        settings = {"PYTHONPATH": str(checkout), "HF_DATASETS_CACHE": cache, "OMP_NUM_THREADS": "1"}
        run = subprocess.run(
            [sys.executable, "-c", LOAD, str(file)],
            env={**os.environ, **settings},
            cwd=cache,
            check=True,
            capture_output=True,
            text=True,
        )
    seconds, memory = map(float, run.stdout.split())
    return seconds, memory


def main() -> None:
    """Measures and prints."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("other", type=Path, help="the other checkout's root")
    options.add_argument("--rows", type=int, default=1_000_000)
    options.add_argument("--rounds", type=int, default=3)
    args = options.parse_args()
    checkouts = {"this": Path(__file__).resolve().parents[2], "other": args.other.resolve()}
    measured: dict[str, list[tuple[float, float]]] = {name: [] for name in checkouts}
    with TemporaryDirectory() as folder:
        file = Path(folder, "rows.csv")
        write(file, args.rows)
        for _ in range(args.rounds):
            for name, checkout in checkouts.items():
                measured[name].append(load(checkout, file))
    for i, quantity in enumerate(("seconds", "MB at peak")):
        median = {name: statistics.median(values[i] for values in rounds) for name, rounds in measured.items()}
        figures = ", ".join(f"{name} {value:.1f}" for name, value in median.items())
        sys.stdout.write(f"{quantity}: {figures}, ratio {median['this'] / median['other']:.2f}\n")


if __name__ == "__main__":
    main()
