"""Printing a grid's table and the paths of its files on the terminal."""

from __future__ import annotations

import sys
from pathlib import Path

from lightning_backdoor.benchmark.metrics import BRIEF
from lightning_backdoor.benchmark.results import Results
from lightning_backdoor.benchmark.summaries import shown_metrics


def print_table(results: Results) -> None:
    """Prints a table over seeds per dataset and model, with the main metrics, and the AUROC of inspections."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    metrics = [metric for metric in shown_metrics(results.summaries) if metric.name in BRIEF]
    tables: dict[str, Table] = {}
    for summary in results.summaries:
        title = f"{summary.names['dataset']} · {summary.names['model']}"
        if title not in tables:
            tables[title] = Table("attack", "defense", title=Text(title))
            for metric in metrics:
                tables[title].add_column(metric.title.replace(" ", "\n"), justify="right")
        numbers = [summary.numbers.get(metric.name) for metric in metrics]
        cells = ["–" if n is None else n.text if n.spread is None else f"{n.text}\n± {n.spread:.3f}" for n in numbers]
        if summary.failed:
            cells[:1] = ["failed"]
        tables[title].add_row(Text(summary.names["attack"]), Text(summary.names["defense"]), *cells)
    for table in tables.values():
        console.print(table)
    for inspection in results.inspections:
        area = "undefined" if inspection.auroc is None else f"{inspection.auroc:.3f}"
        victims = f"{len(inspection.benign)} benign, {len(inspection.attacked)} attacked victims"
        console.print(Text(f"{' · '.join(inspection.names.values())}: AUROC over victims {area} ({victims})"))


def print_written(folder: Path) -> None:
    """Prints the paths of the results."""
    for name in ("results.csv", "comparisons.csv", "report.html"):
        sys.stdout.write(f"{name:16} {folder / name}\n")
