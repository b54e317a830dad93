"""The numbers of runs as one table on the terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping

from rich.console import Console
from rich.table import Table
from rich.text import Text

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
    """A table with a column for each run undefended and one for each of its defenses.

    Args:
        runs: by name, each a run's metrics as logged (``test/cacc``, ...); where a run was tested, what it logged in
            validation is left aside.
    """
    table = Table("")
    columns: list[tuple[Mapping[str, float], str | None]] = []  # metrics, and what a defense puts before their names
    for run, logged in runs.items():
        metrics = _of_one_stage(logged)
        columns.append((metrics, None))
        table.add_column(Text(f"{run}\nundefended"), justify="right")
        for name in metrics:
            prefix, _, metric = name.rpartition("/")
            if metric == "cacc_defended":
                columns.append((metrics, f"{prefix}/" if prefix else ""))
                table.add_column(Text(f"{run}\n{prefix or 'defended'}"), justify="right")
    for title, plain, defended in ROWS:
        _add(table, title, [m.get(plain if prefix is None else prefix + defended) for m, prefix in columns])
    for title, name in DETECTION:
        _add(table, title, [None if prefix is None else m.get(prefix + name) for m, prefix in columns])
    return table


def print_results(runs: Mapping[str, Mapping[str, float]]) -> None:
    """Prints :func:`results_table`."""
    Console().print(results_table(runs))


def _of_one_stage(metrics: Mapping[str, float]) -> dict[str, float]:
    """Metrics by name without their stage."""
    for stage in ("test/", "val/"):
        found = {name.removeprefix(stage): value for name, value in metrics.items() if name.startswith(stage)}
        if found:
            return found
    return {}


def _add(table: Table, title: str, values: list[float | None]) -> None:
    if any(value is not None for value in values):
        shown = ["" if value is None else "undefined" if math.isnan(value) else f"{value:.3f}" for value in values]
        table.add_row(title, *shown)
