"""The numbers of runs as one table on the terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping

from rich.console import Console
from rich.table import Table

#: what is shown, in this order; README.md says what each means.
ROWS = (
    ("CACC", "cacc", "cacc_defended"),
    ("ASR", "asr", "asr_defended"),
    ("PACC", "pacc", "pacc_defended"),
    ("ASR floor", "asr_floor", "asr_floor_defended"),
)
DETECTION = (
    ("AUROC", "auroc"),
    ("AUROC, clean rows predicted as target", "auroc_target"),
    ("TPR", "tpr"),
    ("FPR", "fpr"),
    ("TPR confirmed", "tpr_confirmed"),
    ("FPR confirmed", "fpr_confirmed"),
    ("Localisation", "localisation"),
    ("Overhead", "overhead"),
)


def results_table(runs: Mapping[str, Mapping[str, float]]) -> Table:
    """A table with two columns a run, undefended and defended.

    Args:
        runs: by name, each a run's metrics as logged (``test/cacc``, ...); those of named defenses get columns too.
    """
    table = Table()
    table.add_column("")
    columns: list[tuple[Mapping[str, float], str]] = []
    for run, metrics in runs.items():
        table.add_column(f"{run}\nundefended", justify="right")
        columns.append((metrics, ""))
        for defense in _defenses(metrics):
            table.add_column(f"{run}\n{defense or 'defended'}", justify="right")
            columns.append((metrics, f"{defense}/" if defense else "defended"))
    for title, plain, defended in ROWS:
        _add(table, title, [_find(m, plain if not kind else _key(kind, defended)) for m, kind in columns])
    for title, name in DETECTION:
        _add(table, title, [_find(m, _key(kind, name)) if kind else None for m, kind in columns])
    return table


def print_results(runs: Mapping[str, Mapping[str, float]]) -> None:
    """Prints :func:`results_table`."""
    Console().print(results_table(runs))


def _key(kind: str, name: str) -> str:
    return name if kind == "defended" else kind + name


def _defenses(metrics: Mapping[str, float]) -> list[str]:
    """Names under which defenses logged; the empty one for a single defense."""
    found = [name.split("/", 1)[1] for name in metrics if name.endswith("cacc_defended")]
    return [name.rpartition("/")[0] for name in found]


def _find(metrics: Mapping[str, float], name: str) -> float | None:
    for stage in ("test", "val"):
        if f"{stage}/{name}" in metrics:
            return metrics[f"{stage}/{name}"]
    return None


def _add(table: Table, title: str, values: list[float | None]) -> None:
    if any(value is not None for value in values):
        shown = ["" if value is None else "undefined" if math.isnan(value) else f"{value:.3f}" for value in values]
        table.add_row(title, *shown)
