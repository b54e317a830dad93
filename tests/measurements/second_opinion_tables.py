"""The tables of ``docs/second_opinion.md``, from the folders of its grids.

Run ``python -m tests.measurements.second_opinion_tables --grid held-out=runs/second_opinion --overview
offline=runs/second_opinion_offline --write docs/second_opinion.md``, with the mark in the page and the folder of each
grid: ``--grid`` shows a row per defense, ``--overview`` one per attack. The grids can be run in parts, on several
machines: ``--cells docs/cells`` adds their cells to those of a file per mark, from which the tables are made; without
``=FOLDER`` they are made from that file alone. A cell that has not been run has no line.
"""

from __future__ import annotations

import argparse
import csv
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torchmetrics.functional.classification import binary_auroc

from lightning_backdoor.benchmark.grid import CLEAN_TRAINING, UNDEFENDED
from tests.measurements.cells import Line, add_cells, finished
from tests.support.marked import replace_marked

MISSING = "–"
#: heading of each column of a row per defense.
HEADINGS = ("AUROC, fooled", "AUROC, all", "ASR after", "ASR after, over floor", "CACC change, points", "FPR")
#: the column of AUROCs of rows that fool the victim, which is added to those of ``results.csv``.
FOOLED = "auroc_fooled"


def auroc_fooled(outcomes: Path) -> float | None:
    """AUROC of the poisoned rows that fool the victim against all clean rows; None if there are none, or no scores."""
    with outcomes.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    kept = [row for row in rows if row["poisoned"] == "0" or row["prediction"] == row["target_label"]]
    poisoned = torch.tensor([int(row["poisoned"]) for row in kept])
    if not poisoned.any() or not all(row["score"] for row in kept):
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


@dataclass
class Group:
    """The cells of one attack on one dataset.

    Args:
        dataset: name of the dataset, where the grid has several.
        attack: name of the attack.
        lines: the cells.
    """

    dataset: str
    attack: str
    lines: Sequence[Line]

    @property
    def title(self) -> str:
        where = f"{self.dataset}, " if self.dataset else ""
        return where + ("no attack" if self.attack == "none" else self.attack)

    @property
    def floors(self) -> dict[str, float | None]:
        """The ASR of a cleanly trained victim, by seed."""
        return {line["seed"]: number(line, "asr") for line in self.under(CLEAN_TRAINING)}

    @property
    def defenses(self) -> list[str]:
        return [name for name in dict.fromkeys(line["defense"] for line in self.lines) if name not in CONTROLS]

    def under(self, defense: str) -> list[Line]:
        """The cells of one defense, over seeds."""
        return [line for line in self.lines if line["defense"] == defense]

    def undefended(self, column: str) -> str:
        return spread(number(line, column) for line in self.under(UNDEFENDED))


CONTROLS = (UNDEFENDED, CLEAN_TRAINING)


def groups(lines: Sequence[Line]) -> list[Group]:
    """The cells of each attack on each dataset, in the order of the grid."""
    several = len({line["dataset"] for line in lines}) > 1
    names = dict.fromkeys((line["dataset"], line["attack"]) for line in lines)
    return [
        Group(
            dataset if several else "",
            attack,
            [line for line in lines if (line["dataset"], line["attack"]) == (dataset, attack)],
        )
        for dataset, attack in names
    ]


def table(lines: Sequence[Line]) -> str:
    """All defenses of a grid, attack by attack."""
    rows = [f"| | {' | '.join(HEADINGS)} |", "|---|" + "---|" * len(HEADINGS)]
    for group in groups(lines):
        said = f"CACC {group.undefended('cacc')}"
        if group.attack != "none":
            said += f", ASR {group.undefended('asr')}, floor {spread(group.floors.values())}"
        rows.append(f"| **{group.title}**: {said} |" + " |" * len(HEADINGS))
        for defense in group.defenses:
            own = group.under(defense)
            cells = [
                spread(number(line, FOOLED) for line in own),
                spread(number(line, "auroc") for line in own),
                spread(number(line, "asr_defended") for line in own),
                spread(difference(line, "asr_defended", group.floors.get(line["seed"])) for line in own),
                spread((difference(line, "cacc_defended", "cacc", 100.0) for line in own), digits=1),
                spread(number(line, "fpr") for line in own),
            ]
            rows.append(f"| {' | '.join([defense, *cells])} |")
    return "\n".join(rows)


def overview(lines: Sequence[Line]) -> str:
    """One row per attack, with the AUROC of fooled rows, the ASR after and the change of CACC of each defense."""
    found = groups(lines)
    defenses = list(dict.fromkeys(defense for group in found for defense in group.defenses))
    rows = [f"| | CACC | ASR | floor | {' | '.join(defenses)} |", "|---|---|---|---|" + "---|" * len(defenses)]
    for group in found:
        cells = [group.title, group.undefended("cacc"), group.undefended("asr"), spread(group.floors.values())]
        for defense in defenses:
            own = group.under(defense)
            shown = (
                _mean(number(line, FOOLED) for line in own),
                _mean(number(line, "asr_defended") for line in own),
                _mean((difference(line, "cacc_defended", "cacc", 100.0) for line in own), digits=1),
            )
            cells.append(" / ".join(shown) if own else MISSING)
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _mean(numbers: Iterable[float | None], digits: int = 3) -> str:
    return spread(numbers, digits).partition(" ± ")[0]


def lines_of(folder: Path | None, cells: Path | None) -> list[Line]:
    """The cells of a grid's folder, of a file of cells, or of the file after those of the folder have been added."""
    if folder is None:
        return [] if cells is None else finished(cells)
    results = folder / "results.csv"

    def fooled(line: Line) -> Line:
        area = auroc_fooled(folder / "cells" / line["cell"] / "outcomes.csv")
        return {FOOLED: "" if area is None else f"{area:.6g}"}

    if cells is not None:
        add_cells(results, cells, fooled)
        return finished(cells)
    return [{**line, **fooled(line)} for line in finished(results)]


def main() -> None:
    parser = argparse.ArgumentParser(description="The tables of docs/second_opinion.md, from the folders of its grids.")
    for option, rows in (("--grid", "defense"), ("--overview", "attack")):
        text = f"a grid, with a row per {rows}; repeatable"
        parser.add_argument(option, action="append", default=[], metavar="MARK[=FOLDER]", help=text)
    parser.add_argument("--cells", type=Path, help="folder of the files of cells, second_opinion_MARK.csv")
    parser.add_argument("--write", type=Path, help="file whose marked parts are replaced; printed by default")
    args = parser.parse_args()
    tables = {}
    for layout, grids in ((table, args.grid), (overview, args.overview)):
        for name in grids:
            mark, _, folder = name.partition("=")
            cells = None if args.cells is None else args.cells / f"second_opinion_{mark}.csv"
            if folder and not (Path(folder) / "results.csv").is_file():
                parser.error(f"{name}: there is no results.csv in {folder}")
            if not folder and (cells is None or not cells.is_file()):
                parser.error(f"{name}: give the grid's folder, or --cells with a file {cells or 'of cells'}")
            tables[mark] = layout(lines_of(Path(folder) if folder else None, cells))
    if args.write:
        replace_marked(args.write, tables)
    else:
        print("\n\n".join(tables.values()))


if __name__ == "__main__":
    main()
