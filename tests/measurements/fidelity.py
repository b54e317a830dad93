"""CACC and ASR of victims that are trained in bf16-mixed precision and in float32, seed by seed.

Run ``python -m tests.measurements.fidelity --data sst2 --output FOLDER``. It is a grid of two precisions by seeds: the
same command continues it after any interruption, and ``--seeds`` runs it in parts. ``fidelity.json`` in the folder has
the numbers of the table.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from lightning_backdoor.benchmark.fragments import yaml_text
from lightning_backdoor.cli import main as lightning_backdoor
from lightning_backdoor.files.atomic import write_whole
from tests.measurements.pairs import MODEL

#: the precisions that are compared, the reference last.
PRECISIONS = ("bf16-mixed", "32-true")
METRICS = {"cacc": "CACC", "asr": "ASR"}


class Fidelity(NamedTuple):
    """One metric of victims that were trained from the same seeds in two precisions.

    Attributes:
        seeds: the seeds that both precisions have.
        mixed: the metric in bf16-mixed precision, by seed.
        full: the metric in float32, by seed.
    """

    seeds: list[int]
    mixed: list[float]
    full: list[float]

    @property
    def differences(self) -> list[float]:
        """bf16-mixed minus float32, by seed."""
        return [mixed - full for mixed, full in zip(self.mixed, self.full, strict=True)]

    @property
    def spread(self) -> float:
        """The larger of the two standard deviations over seeds."""
        return max(deviation(self.mixed), deviation(self.full))

    @property
    def within_spread(self) -> bool:
        """Whether the mean difference is at most the spread over seeds."""
        return abs(statistics.mean(self.differences)) <= self.spread


def deviation(values: Sequence[float]) -> float:
    """The sample standard deviation; NaN for one value."""
    return statistics.stdev(values) if len(values) > 1 else float("nan")


def grid(args: argparse.Namespace) -> str:
    """The grid of the victims, as YAML."""
    source = {"path": str(args.data), "labels": ["negative", "positive"]}
    victim = {"model": args.model, "learning_rate": args.learning_rate}
    return yaml_text(
        {
            "base": {
                "trainer": {"accelerator": "cpu", "max_epochs": args.epochs},
                "model": {"init_args": victim},
                "data": {"init_args": {"max_rows": {"train": args.rows}}},
            },
            "datasets": {"SST-2": {"data": {"init_args": {"source": source}}}},
            "models": {precision: {"trainer": {"precision": precision}} for precision in PRECISIONS},
            "attacks": {"BadNets": {"class_path": "lightning_backdoor.attacks.BadNets"}},
            "defenses": {"none": None},
            "seeds": args.seeds,
        }
    )


def read(results: Path) -> dict[str, Fidelity]:
    """The metrics by name, of the seeds that both precisions have in a ``results.csv``."""
    with results.open(encoding="utf-8", newline="") as file:
        rows = {(row["model"], int(row["seed"])): row for row in csv.DictReader(file) if not row["error"]}
    seeds = sorted(seed for precision, seed in rows if precision == PRECISIONS[0] and (PRECISIONS[1], seed) in rows)
    return {
        name: Fidelity(seeds, *([float(rows[precision, seed][name]) for seed in seeds] for precision in PRECISIONS))
        for name in METRICS
    }


def table(measured: dict[str, Fidelity]) -> Table:
    result = Table(title="Victims trained in bf16-mixed precision and in float32, all tested in float32")
    for heading in ("metric", *(f"seed {seed}" for seed in measured["cacc"].seeds), "mean", "spread"):
        result.add_column(heading, justify="left" if heading == "metric" else "right")
    for name, of in measured.items():
        for title, values in (("bf16-mixed", of.mixed), ("float32", of.full), ("difference", of.differences)):
            numbers = [*values, statistics.mean(values), deviation(values)]
            shown = (f"{number:+.4f}" if title == "difference" else f"{number:.4f}" for number in numbers)
            result.add_row(f"{METRICS[name]}, {title}", *shown, end_section=title == "difference")
    return result


def as_json(measured: dict[str, Fidelity], args: argparse.Namespace) -> str:
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
    metrics = {
        name: {**of._asdict(), "differences": of.differences, "spread": of.spread, "within_spread": of.within_spread}
        for name, of in measured.items()
    }
    return json.dumps({"settings": settings, "metrics": metrics}, indent=1) + "\n"


def main() -> int:
    options = argparse.ArgumentParser(description="CACC and ASR of victims trained in bf16-mixed and in float32.")
    options.add_argument("--data", type=Path, default=Path("sst2"), help="folder with SST-2, columns text, label")
    options.add_argument("--output", type=Path, required=True, help="folder of the victims and results")
    options.add_argument("--model", default=MODEL, help="the model that is fine-tuned")
    options.add_argument("--rows", type=int, default=2500, help="training rows")
    options.add_argument("--epochs", type=int, default=3)
    options.add_argument("--learning-rate", type=float, default=1e-4)
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = options.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    config = args.output / "fidelity.yaml"
    write_whole(config, grid(args))
    folder = args.output / "grid"
    status = lightning_backdoor(["benchmark", "--config", str(config), "--output", str(folder)])
    if status:
        return status
    measured = read(folder / "results.csv")
    write_whole(args.output / "fidelity.json", as_json(measured, args))
    Console(width=None if sys.stdout.isatty() else 140).print(table(measured))
    for name, of in measured.items():
        said = "is within" if of.within_spread else "exceeds"
        print(f"{METRICS[name]}: the mean difference {said} the spread over seeds ({of.spread:.4f})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
