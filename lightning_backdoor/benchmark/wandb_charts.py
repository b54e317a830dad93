"""Tables and charts of a cell or a grid for Weights & Biases."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lightning_backdoor.benchmark.comparisons import COMPARED_COLUMNS
from lightning_backdoor.benchmark.detection import roc, split_scores
from lightning_backdoor.benchmark.inspections import INSPECTION_COLUMNS
from lightning_backdoor.benchmark.metrics import METRIC_NAMES
from lightning_backdoor.benchmark.results import Results
from lightning_backdoor.benchmark.summaries import Summary
from lightning_backdoor.benchmark.table import ATTACK_NAMES, COLUMNS, NAMES, ResultRow, grouped
from lightning_backdoor.outputs.outcomes import read_outcomes
from lightning_backdoor.outputs.wandb_media import score_histograms, texts_table

#: columns of the table over seeds; each metric is followed by its standard deviation.
SUMMARY_COLUMNS = (
    *(*NAMES, "seeds"),
    *(name + end for name in METRIC_NAMES for end in ("", "_spread")),
    *("valid", "errors"),
)


def cell_media(folder: Path) -> dict[str, Any]:
    """``scores_clean``, ``scores_poisoned``, ``roc`` and ``texts`` of a cell, as far as there is data for them.

    Args:
        folder: the cell's folder, with ``outcomes.csv`` and, if a defense wrote it, ``texts.jsonl``.
    """
    import wandb

    media: dict[str, Any] = {}
    clean, poisoned = split_scores(read_outcomes(folder / "outcomes.csv"))
    if len(clean) or len(poisoned):
        media |= score_histograms([*clean, *poisoned], [0] * len(clean) + [1] * len(poisoned))
    if points := roc(clean, poisoned):
        table = wandb.Table(columns=["fpr", "tpr"], data=[[*point] for point in points])
        media["roc"] = wandb.plot.line(table, "fpr", "tpr", title="ROC")
    if (folder / "texts.jsonl").exists():
        with (folder / "texts.jsonl").open(encoding="utf-8") as file:
            media["texts"] = texts_table([json.loads(line) for line in file])
    return media


def grid_media(results: Results) -> dict[str, Any]:
    """The tables ``results``, ``over_seeds``, ``comparisons`` and, if there are any, ``inspections``; and charts."""
    lines = [_line(summary) for summary in results.summaries]
    media = {
        "results": _table(results.rows, COLUMNS),
        "over_seeds": _table(lines, SUMMARY_COLUMNS),
        "comparisons": _table(results.comparisons, COMPARED_COLUMNS),
    }
    if results.inspections:
        media["inspections"] = _table([inspection.as_row() for inspection in results.inspections], INSPECTION_COLUMNS)
    return media | _charts(lines)


def _line(summary: Summary) -> ResultRow:
    row: ResultRow = {**summary.names, "seeds": len(summary.seeds), "errors": "; ".join(summary.errors)}
    for name, number in summary.numbers.items():
        row |= {name: number.mean, f"{name}_spread": number.spread}
    valid, known = summary.valid
    return {**row, "valid": f"{valid} of {known}" if known else ""}


def _charts(lines: Iterable[ResultRow]) -> dict[str, Any]:
    """A chart of CACC against ASR, and bar charts of each by defense."""
    import wandb

    metrics = ("asr_defended", "cacc_defended")
    rows = [line for line in lines if {*metrics} <= {*line}]
    title = "CACC against ASR, after the defense"
    charts = {"cacc_against_asr": wandb.plot.scatter(_table(rows, (*NAMES, *metrics)), *metrics, title=title)}
    n_defenses = len({row["defense"] for row in rows})
    # only attacks that all defenses were tested against: others would bias the means
    shared = [row for group in grouped(rows, ATTACK_NAMES) if len(group) == n_defenses for row in group]
    for metric in metrics:
        means = [
            {"defense": group[0]["defense"], metric: statistics.mean(row[metric] for row in group)}
            for group in grouped(shared, ["defense"])
        ]
        title = f"{metric.split('_')[0].upper()} after the defense, mean over the attacks that all were tested against"
        charts[f"{metric}_by_defense"] = wandb.plot.bar(_table(means, ("defense", metric)), "defense", metric, title)
    return charts


def _table(rows: Iterable[ResultRow], columns: Sequence[str]) -> Any:
    import wandb

    data = [[row.get(name) for name in columns] for row in rows]
    return wandb.Table(columns=[*columns], data=data, allow_mixed_types=True)
