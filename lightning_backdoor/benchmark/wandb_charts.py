"""What Weights & Biases shows of a cell and of a grid beside its numbers: tables and charts."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lightning_backdoor.benchmark.report.roc import roc
from lightning_backdoor.benchmark.table import COLUMNS, COMPARED, METRICS, NAMES, Row, Summary, over_seeds
from lightning_backdoor.outputs.outcomes import read_outcomes
from lightning_backdoor.outputs.wandb_media import score_histograms, texts_table

#: a row over its seeds: how many there are, each metric and its spread, how many seeds are valid, what failed.
OVER_SEEDS = (*NAMES, "seeds", *(name + end for name in METRICS for end in ("", "_spread")), "valid", "errors")


def of_cell(folder: Path) -> dict[str, Any]:
    """``scores_clean``, ``scores_poisoned``, ``roc`` and ``texts`` of a cell, each where there is such.

    Args:
        folder: with ``outcomes.csv`` and, where a defense wrote it, ``texts.jsonl``.
    """
    return _of_scores(folder / "outcomes.csv") | _texts(folder / "texts.jsonl")


def of_grid(rows: Sequence[Row], compared: Sequence[Row]) -> dict[str, Any]:
    """The tables ``results``, ``over_seeds`` and ``comparisons``, CACC against ASR, and bars by defense.

    Args:
        rows: of the table.
        compared: what :func:`lightning_backdoor.benchmark.table.comparisons` found.
    """
    summaries = over_seeds(rows)
    tables = {
        "results": _table(rows, COLUMNS),
        "over_seeds": _table(map(_over_seeds, summaries), OVER_SEEDS),
        "comparisons": _table(compared, COMPARED),
    }
    return tables | _charts(summaries)


def _of_scores(path: Path) -> dict[str, Any]:
    import wandb

    outcomes = read_outcomes(path)
    scored = [(o.score, o.poisoned) for o in outcomes if o.score is not None and not math.isnan(o.score)]
    if not scored:
        return {}
    shown = score_histograms(*zip(*scored, strict=True))
    clean, poisoned = ([score for score, kind in scored if kind is wanted] for wanted in (False, True))
    if points := roc(clean, poisoned):
        table = wandb.Table(columns=["fpr", "tpr"], data=[[*point] for point in points])
        shown["roc"] = wandb.plot.line(table, "fpr", "tpr", title="ROC")
    return shown


def _texts(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    with path.open(encoding="utf-8") as file:
        return {"texts": texts_table([json.loads(line) for line in file])}


def _over_seeds(summary: Summary) -> Row:
    row: Row = {**summary.names, "seeds": len(summary.seeds)}
    for name in METRICS:
        row |= {name: summary.means[name], f"{name}_spread": summary.spreads[name]}
    valid, known = summary.valid
    return {**row, "valid": f"{valid} of {known}" if known else "", "errors": "; ".join(summary.errors)}


def _charts(summaries: Iterable[Summary]) -> dict[str, Any]:
    import wandb

    rows: list[Row] = [{**summary.names, **summary.means} for summary in summaries]
    columns = (*NAMES, "asr_defended", "cacc_defended")
    known = [row for row in rows if None not in (row["asr_defended"], row["cacc_defended"])]
    title = "CACC against ASR, after the defense"
    charts = {"cacc_against_asr": wandb.plot.scatter(_table(known, columns), *columns[-2:], title=title)}
    places = [tuple(row[name] for name in NAMES[:3]) for row in known]
    defenses = {row["defense"] for row in known}
    # attacks that some defense has not met would favour it or the others
    shared = [row for row, place in zip(known, places, strict=True) if places.count(place) == len(defenses)]
    for metric in columns[-2:]:
        values: dict[str, list[float]] = {}
        for row in shared:
            values.setdefault(row["defense"], []).append(row[metric])
        means = [{"defense": name, metric: statistics.mean(found)} for name, found in values.items()]
        title = f"{metric.split('_')[0].upper()} after the defense, mean over the attacks that all have met"
        charts[f"{metric}_by_defense"] = wandb.plot.bar(_table(means, ("defense", metric)), "defense", metric, title)
    return charts


def _table(rows: Iterable[Row], columns: Sequence[str]) -> Any:
    import wandb

    data = [[row.get(name) for name in columns] for row in rows]
    return wandb.Table(columns=[*columns], data=data, allow_mixed_types=True)
