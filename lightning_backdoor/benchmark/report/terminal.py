"""The table of a grid on the terminal, and where its files are."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from lightning_backdoor.benchmark.table import Row, Summary, over_seeds

#: columns of the table on the terminal; the report has all.
SHOWN = {
    "CACC": "cacc",
    "ASR": "asr",
    "CACC\ndefended": "cacc_defended",
    "ASR\ndefended": "asr_defended",
    "AUROC": "auroc",
}


def print_table(rows: Sequence[Row]) -> None:
    """Prints the table over seeds, one for each dataset and model."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    tables: dict[str, Table] = {}
    for summary in over_seeds(rows):
        names = summary.names
        title = f"{names['dataset']} · {names['model']}"
        if title not in tables:
            tables[title] = Table("attack", "defense", title=Text(title))
            for name in SHOWN:
                tables[title].add_column(name, justify="right")
        cells = [_mean(summary, metric) for metric in SHOWN.values()]
        if summary.errors and not summary.seeds:
            cells[0] = "failed"
        tables[title].add_row(Text(names["attack"]), Text(names["defense"]), *cells)
    for table in tables.values():
        console.print(table)


def _mean(summary: Summary, metric: str) -> str:
    mean, spread = summary.means[metric], summary.spreads[metric]
    return "–" if mean is None else f"{mean:.3f}" + ("" if spread is None else f"\n± {spread:.3f}")


def print_written(folder: Path) -> None:
    """Prints where the results are."""
    for name in ("results.csv", "comparisons.csv", "report.html"):
        sys.stdout.write(f"{name:16} {folder / name}\n")
