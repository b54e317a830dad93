"""The tables of ``docs/second_opinion.md``, from the folders of its grids.

Run ``python -m tests.measurements.second_opinion_tables --grid held-out=runs/second_opinion --write
docs/second_opinion.md``; ``--grid`` may be repeated, with the mark in the page and the folder of a grid. A cell that
has not been run has no line.
"""

from __future__ import annotations

import argparse
import csv
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torchmetrics.functional.classification import binary_auroc

from lightning_backdoor.benchmark.grid import CLEAN_TRAINING, UNDEFENDED
from tests.support.marked import replace_marked

#: a line of ``results.csv`` by its column names.
Line = dict[str, str]

MISSING = "–"
HEADINGS = ("AUROC, fooled", "AUROC, all", "ASR after", "ASR after, over floor", "CACC change, points", "FPR")


class Group(NamedTuple):
    """The cells of one attack on one dataset."""

    dataset: str
    attack: str


def auroc_fooled(outcomes: Path) -> float | None:
    """AUROC of the poisoned rows that fool the victim against all clean rows; None if there are none."""
    with outcomes.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    kept = [row for row in rows if row["poisoned"] == "0" or row["prediction"] == row["target_label"]]
    poisoned = torch.tensor([int(row["poisoned"]) for row in kept])
    if not poisoned.any():
        return None
    scores = torch.tensor([float(row["score"]) for row in kept], dtype=torch.float64)
    ranks = torch.unique(scores, return_inverse=True)[1]  # between 0 and 1, or torchmetrics would take a sigmoid
    return float(binary_auroc(ranks.double() / len(ranks), poisoned))


def spread(numbers: Iterable[float | None], digits: int = 3) -> str:
    """Mean and standard deviation over seeds."""
    known = [number for number in numbers if number is not None]
    if not known:
        return MISSING
    deviation = f" ± {statistics.stdev(known):.{digits}f}" if len(known) > 1 else ""
    return f"{statistics.mean(known):.{digits}f}{deviation}"


def number(line: Line, column: str) -> float | None:
    return float(line[column]) if line.get(column) else None


def difference(line: Line, column: str, other: str | float | None, factor: float = 1.0) -> float | None:
    first, second = number(line, column), number(line, other) if isinstance(other, str) else other
    return None if first is None or second is None else factor * (first - second)


def defense_row(folder: Path, lines: Sequence[Line], floors: dict[str, float | None]) -> list[str]:
    """The cells of one defense against one attack, over seeds."""
    fooled = [auroc_fooled(folder / "cells" / line["cell"] / "outcomes.csv") for line in lines]
    return [
        spread(fooled),
        spread(number(line, "auroc") for line in lines),
        spread(number(line, "asr_defended") for line in lines),
        spread(difference(line, "asr_defended", floors.get(line["seed"])) for line in lines),
        spread((difference(line, "cacc_defended", "cacc", 100.0) for line in lines), digits=1),
        spread(number(line, "fpr") for line in lines),
    ]


def table(folder: Path) -> str:
    """All defenses of a grid, attack by attack."""
    with (folder / "results.csv").open(encoding="utf-8", newline="") as file:
        lines = [line for line in csv.DictReader(file) if not line["error"]]
    rows = [f"| | {' | '.join(HEADINGS)} |", "|---|" + "---|" * len(HEADINGS)]
    datasets = {line["dataset"] for line in lines}
    for group in dict.fromkeys(Group(line["dataset"], line["attack"]) for line in lines):
        own = [line for line in lines if Group(line["dataset"], line["attack"]) == group]
        floors = {line["seed"]: number(line, "asr") for line in own if line["defense"] == CLEAN_TRAINING}
        undefended = [line for line in own if line["defense"] == UNDEFENDED]
        name = "no attack" if group.attack == "none" else group.attack
        where = f"{group.dataset}, " if len(datasets) > 1 else ""
        said = f"CACC {spread(number(line, 'cacc') for line in undefended)}"
        if group.attack != "none":
            said += f", ASR {spread(number(line, 'asr') for line in undefended)}, floor {spread(floors.values())}"
        rows.append(f"| **{where}{name}**: {said} |" + " |" * len(HEADINGS))
        for defense in dict.fromkeys(line["defense"] for line in own):
            if defense not in (UNDEFENDED, CLEAN_TRAINING):
                cells = defense_row(folder, [line for line in own if line["defense"] == defense], floors)
                rows.append(f"| {' | '.join([defense, *cells])} |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description="The tables of docs/second_opinion.md, from the folders of its grids.")
    parser.add_argument("--grid", action="append", required=True, metavar="MARK=FOLDER", help="a grid; repeatable")
    parser.add_argument("--write", type=Path, help="file whose marked parts are replaced; printed by default")
    args = parser.parse_args()
    tables = {}
    for given in args.grid:
        mark, _, folder = given.partition("=")
        if not (Path(folder) / "results.csv").is_file():
            parser.error(f"--grid: {given}: there is no results.csv in {folder or 'no folder'}")
        tables[mark] = table(Path(folder))
    if args.write:
        replace_marked(args.write, tables)
    else:
        print("\n\n".join(tables.values()))


if __name__ == "__main__":
    main()
