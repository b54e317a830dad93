"""How time and memory grow with rows, length, classes, defenses and processes.

    python -m tests.measurements.growth
    python -m tests.measurements.growth rows classes --max 100000 --only poison

Each point is measured in a process of its own, forked from one that has the libraries, and kept in ``--output``, so
that the same command continues where it was ended. There are at most as many processes as cores. The slope is that of
the logarithms between the two largest points: 1 is linear. A slope above 1.1 is marked, with its reason where
``EXPECTED`` has one. Memory is the highest resident memory, that of the largest process, and what the operation adds to
it.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import logging
import math
import multiprocessing
import os
import resource
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import transformers
from rich.console import Console
from rich.table import Table

from lightning_backdoor import __version__
from lightning_backdoor.files.atomic import write_whole
from tests.measurements.cost import resident_memory
from tests.measurements.growth_operations import OPERATIONS, Size, inside
from tests.measurements.pairs import Comparison, Pair

#: the slope above which growth is worse than linear, beyond what repeated measurements differ by.
LINEAR = 1.1
#: seconds and MiB below which a figure is mostly what any size takes, so that no slope is taken from it.
LEAST = {"s": 0.05, "MiB": 32.0}
#: operations that grow faster than linearly along an axis, with the reason.
EXPECTED = {
    ("results and report", "defenses"): "every two defenses are compared",
    ("fit", "length"): "attention compares every two tokens",
    ("test", "length"): "attention compares every two tokens",
    ("scan", "length"): "attention compares every two tokens",
}
#: seconds and MiB that ``poison`` of a million csv rows took when every row was an object, on an idle 2-core machine.
ROWS_AS_OBJECTS = {"s": 83.0, "MiB": 2700.0}
DATA = ("read csv", "read tsv", "read jsonl", "read parquet", "split", "tokenise", "form batches", "text cache")
STARTED = "poison (command, start-up included)"
POISON = tuple(name for name in OPERATIONS if name.startswith("poison") and name != STARTED)
RUNS = ("fit", "test", "scan")


class Axis(NamedTuple):
    """What grows, and what is measured along it.

    Attributes:
        values: the sizes.
        base: the other sizes.
        operations: names of the operations, each with its largest value; None for all values.
    """

    values: tuple[int, ...]
    base: Size
    operations: dict[str, int | None]


AXES = {
    "rows": Axis(
        (1_000, 10_000, 100_000, 1_000_000),
        Size(),
        dict.fromkeys((*DATA, *POISON, STARTED, "AUROC with interval"))
        | dict.fromkeys((*RUNS, "results and report"), 100_000)
        | {"plan a grid": 10_000},
    ),
    "length": Axis((16, 64, 256, 512), Size(rows=2_000), dict.fromkeys((*DATA, *POISON, *RUNS))),
    "classes": Axis((2, 10, 100), Size(rows=20_000), dict.fromkeys((*DATA[:5], *POISON, "fit", "test"))),
    "defenses": Axis((2, 4, 8), Size(rows=2_000), dict.fromkeys(("results and report", "plan a grid"))),
    "processes": Axis((1, 2, 4), Size(rows=20_000), {"fit (command)": None}),
}


class Point(NamedTuple):
    """One measurement: wall and processor seconds, and MiB."""

    seconds: float
    processor_seconds: float
    peak: float
    added: float


def measured(operation: str, size: Size) -> Point:
    """Measures an operation in this process, which should be fresh."""
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder, inside(Path(folder)):
        os.environ["LIGHTNING_BACKDOOR_CACHE"] = str(Path(folder) / "cache")
        run = OPERATIONS[operation](size)
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # memory that the preparation freed would hide what the operation takes
        before = resident_memory("VmRSS")
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the high-water mark begins again
        wall, processor = time.perf_counter(), sum(os.times()[:4])
        run()
        wall, processor = time.perf_counter() - wall, sum(os.times()[:4]) - processor
        peak = max(resident_memory("VmHWM"), resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)
    return Point(wall, processor, peak, peak - before)


def in_a_process(operation: str, size: Size) -> Point:
    """Measures an operation in a new process; an error is raised here."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    forked = multiprocessing.get_context("forkserver")
    forked.set_forkserver_preload(["tests.measurements.growth_operations", "tests.measurements.cost"])
    with ProcessPoolExecutor(1, forked) as pool:
        return pool.submit(measured, operation, size).result()


def slope(values: list[int], figures: list[float], least: float) -> float:
    """The slope of the logarithms between the two largest values; NaN where a figure is below ``least``."""
    if len(values) < 2 or min(figures[-2:]) < least:
        return math.nan
    return math.log(figures[-1] / figures[-2]) / math.log(values[-1] / values[-2])


def measure_axis(axis: str, args: argparse.Namespace, kept: dict[str, Any]) -> Iterator[tuple[str, list[int]]]:
    """Measures all points of an axis that are not kept yet; yields each operation with its values."""
    values, base, operations = AXES[axis]
    for operation, most in operations.items():
        if args.only not in operation:
            continue
        done = []
        for value in values:
            if axis == "rows" and value > min(args.max, most or args.max):
                continue
            if axis == "processes" and value > (os.cpu_count() or value):  # which commands refuse
                continue
            key = f"{operation} | {axis} | {value}"
            if key not in kept:
                print(f"{time.strftime('%H:%M:%S')} {operation}: {axis} {value:,}", file=sys.stderr, flush=True)
                kept[key] = in_a_process(operation, base._replace(**{axis: value}))
                write_whole(args.output, json.dumps({"version": __version__, "points": kept}, indent=1) + "\n")
            done.append(value)
        if done:
            yield operation, done


def print_axis(axis: str, rows: list[tuple[str, list[int]]], kept: dict[str, Any], clock: str) -> None:
    """Prints the figures of an axis, an operation per row."""
    others = ", ".join(f"{value:,} {name}" for name, value in AXES[axis].base._asdict().items() if name != axis)
    table = Table(title=f"Growth with {axis}", caption=f"{others}; {clock} seconds, MiB that the operation adds")
    for heading in ("operation", *(f"{value:,}" for value in AXES[axis].values), "slope", "memory", "peak MiB", ""):
        table.add_column(heading, justify="left" if heading in ("operation", "") else "right")
    for operation, values in rows:
        points = [Point(*kept[f"{operation} | {axis} | {value}"]) for value in values]
        figures = [point.seconds if clock == "wall" else point.processor_seconds for point in points]
        times = slope(values, figures, LEAST["s"])
        memory = slope(values, [point.added for point in points], LEAST["MiB"])
        cells = [f"{figure:.3g} s, {point.added:.0f}" for figure, point in zip(figures, points, strict=True)]
        cells += [""] * (len(AXES[axis].values) - len(values))
        above = times > LINEAR or memory > LINEAR
        note = EXPECTED.get((operation, axis), "above linear" if above else "")
        slopes = ["" if math.isnan(figure) else f"{figure:.2f}" for figure in (times, memory)]
        table.add_row(operation, *cells, *slopes, f"{points[-1].peak:.0f}", note)
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def poison(args: argparse.Namespace) -> Iterator[Comparison]:
    """``poison`` of a million csv rows, over what it took when every row was an object."""
    point = in_a_process(STARTED, Size(rows=1_000_000))
    title = "poison, 1 million csv rows / when every row was an object"
    for unit, figure in (("s", point.seconds), ("MiB", point.peak)):
        yield Comparison(title, unit, "<= 0.5", [Pair(figure, ROWS_AS_OBJECTS[unit])])


PARTS = {"poison": poison}


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("axes", nargs="*", help=f"{', '.join(AXES)}; all by default")
    options.add_argument("--max", type=int, default=1_000_000, help="the largest number of rows")
    options.add_argument("--only", default="", help="measure operations with this in their name")
    options.add_argument(
        "--clock",
        choices=("wall", "processor"),
        default="wall",
        help="the seconds that are printed; processor leaves out ranks other than the first",
    )
    options.add_argument("--output", type=Path, default=Path("growth.json"), help="the file that keeps the points")
    args = options.parse_args()
    if unknown := set(args.axes) - set(AXES):
        options.error(f"nothing grows with {', '.join(sorted(unknown))}; give {', '.join(AXES)}")
    kept: dict[str, Any] = json.loads(args.output.read_text(encoding="utf-8"))["points"] if args.output.exists() else {}
    for axis in args.axes or AXES:
        print_axis(axis, list(measure_axis(axis, args, kept)), kept, args.clock)
    return 0


if __name__ == "__main__":
    sys.exit(main())
