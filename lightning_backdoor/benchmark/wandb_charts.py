"""What a Weights & Biases run shows of a cell or of a grid beside its numbers: tables and charts."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lightning_backdoor.benchmark.report.figures import trade_off
from lightning_backdoor.benchmark.results import Results
from lightning_backdoor.benchmark.statistics import roc, split_scores
from lightning_backdoor.benchmark.summaries import Summary
from lightning_backdoor.benchmark.table import ATTACK_NAMES, COLUMNS, ResultRow, grouped
from lightning_backdoor.outputs.outcomes import read_outcomes
from lightning_backdoor.outputs.wandb_media import score_histograms, texts_table


def cell_media(folder: Path) -> dict[str, Any]:
    """``scores_clean``, ``scores_poisoned``, ``roc`` and ``texts`` of a cell, each where there is data for it.

    Args:
        folder: with ``outcomes.csv`` and, where a defense wrote it, ``texts.jsonl``.
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
    """The tables ``results``, ``over_seeds``, ``comparisons`` and ``inspections`` that have rows; and charts.

    Charts show CACC against ASR, and a bar per defense of each. In ``over_seeds``, each metric that any line has is
    followed by its standard deviation.
    """
    import plotly.graph_objects as go
    import wandb

    lines = [_line(summary) for summary in results.summaries]
    media = {
        "results": _table(results.rows, COLUMNS),
        "over_seeds": _table(lines),
        "comparisons": _table(results.comparisons),
        "inspections": _table([inspection.as_row() for inspection in results.inspections]),
        "cacc_against_asr": wandb.Plotly(go.Figure(trade_off(results.summaries))),
    }
    metrics = ("asr_defended", "cacc_defended")
    rows = [line for line in lines if {*metrics} <= {*line}]
    n_defenses = len({row["defense"] for row in rows})
    # an attack that some defenses were not tested against would bias their means
    shared = [row for group in grouped(rows, ATTACK_NAMES) if len(group) == n_defenses for row in group]
    for metric in metrics:
        means = [
            {"defense": group[0]["defense"], metric: statistics.mean(row[metric] for row in group)}
            for group in grouped(shared, ["defense"])
        ]
        title = f"{metric.split('_')[0].upper()} after the defense, mean over the attacks that all were tested against"
        media[f"{metric}_by_defense"] = wandb.plot.bar(_table(means, ("defense", metric)), "defense", metric, title)
    return {name: shown for name, shown in media.items() if not isinstance(shown, wandb.Table) or shown.data}


def _line(summary: Summary) -> ResultRow:
    valid, known = summary.valid
    row: ResultRow = {**summary.names, "seeds": len(summary.seeds), "errors": "; ".join(summary.errors)}
    row["valid"] = f"{valid} of {known}" if known else ""
    for name, number in summary.numbers.items():
        row |= {name: number.mean, f"{name}_spread": number.spread}
    return row


def _table(rows: Iterable[ResultRow], columns: Sequence[str] = ()) -> Any:
    """A table of rows, with all columns that any row has unless some are given."""
    import wandb

    rows = list(rows)
    names = [*columns] or [*dict.fromkeys(name for row in rows for name in row)]
    return wandb.Table(columns=names, data=[[row.get(name) for name in names] for row in rows], allow_mixed_types=True)
