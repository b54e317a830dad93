"""The metrics of runs as a table on the terminal."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lightning_backdoor.errors import one_line

#: the metrics of a victim, in the order of the table: heading, name undefended, name under a defense; README.md
#: defines them.
VICTIM_METRICS = (
    ("CACC", "cacc", "cacc_defended"),
    ("ASR", "asr", "asr_defended"),
    ("PACC", "pacc", "pacc_defended"),
    ("ASR floor", "asr_floor", "asr_floor_defended"),
    ("FTR", "ftr", "ftr_defended"),
)
#: the metrics of each target label of an attack with several: heading and start of the name.
TARGET_METRICS = (("ASR", "asr"), ("ASR floor", "asr_floor"))
OF_TARGET = re.compile(r"asr_to_(\d+)")
#: the metrics of a defense, in the order of the table: heading and name.
DETECTION_METRICS = (
    ("AUROC", "auroc"),
    ("AUROC, clean rows predicted as target", "auroc_target"),
    ("TPR", "tpr"),
    ("FPR", "fpr"),
    ("TPR confirmed", "tpr_confirmed"),
    ("FPR confirmed", "fpr_confirmed"),
    ("Localisation", "localisation"),
    ("Overhead", "overhead"),
)
#: the metrics of an inspection: heading, name and format.
INSPECTION_METRICS = (
    ("Inspection score", "inspection_score", ".3f"),
    ("Inspection p-value", "inspection_p_value", ".2g"),
)


def results_table(runs: Mapping[str, Mapping[str, float]]) -> Table:
    """A table with one column per undefended run, and one column per defense and per named inspection of the run.

    Args:
        runs: logged metrics (``test/cacc``, ...) per run name. Validation metrics are shown only for a run without test
            metrics.
    """
    table = Table("")
    columns: list[tuple[Mapping[str, float], str | None]] = []  # metrics, and a defense's prefix of their names
    for run, logged in runs.items():
        metrics = _of_one_stage(logged)
        columns.append((metrics, None))
        table.add_column(Text(f"{one_line(run)}\nundefended"), justify="right")
        for name in metrics:
            prefix, _, metric = name.rpartition("/")
            if metric == "cacc_defended" or (prefix and metric == "inspection_score"):
                columns.append((metrics, f"{prefix}/" if prefix else ""))
                table.add_column(Text(f"{one_line(run)}\n{one_line(prefix) or 'defended'}"), justify="right")
    targets = sorted({int(found[1]) for metrics, _ in columns for found in map(OF_TARGET.fullmatch, metrics) if found})
    of_targets = [
        (f"{title} to {target}", f"{name}_to_{target}") for target in targets for title, name in TARGET_METRICS
    ]
    rows = (*VICTIM_METRICS, *((title, name, f"{name}_defended") for title, name in of_targets))
    for title, plain, defended in rows:
        _add(table, title, [m.get(plain if prefix is None else prefix + defended) for m, prefix in columns])
    for title, name in DETECTION_METRICS:
        _add(table, title, [None if prefix is None else m.get(prefix + name) for m, prefix in columns])
    for title, name, number_format in INSPECTION_METRICS:
        # an inspection without a name judges the undefended victim
        values = [None if prefix == "" else m.get((prefix or "") + name) for m, prefix in columns]
        _add(table, title, values, number_format)
    return table


def print_results(runs: Mapping[str, Mapping[str, float]]) -> None:
    """Prints :func:`results_table`."""
    Console().print(results_table(runs))


def _of_one_stage(metrics: Mapping[str, float]) -> dict[str, float]:
    """The test metrics, or else the validation metrics, by name without the stage."""
    for stage in ("test/", "val/"):
        of_stage = {name.removeprefix(stage): value for name, value in metrics.items() if name.startswith(stage)}
        if of_stage:
            return of_stage
    return {}


def _add(table: Table, title: str, values: list[float | None], number_format: str = ".3f") -> None:
    """Adds a row, unless no column has a value for it."""
    if all(value is None for value in values):
        return
    cells = [
        "" if value is None else "undefined" if math.isnan(value) else f"{value:{number_format}}" for value in values
    ]
    table.add_row(title, *cells)
