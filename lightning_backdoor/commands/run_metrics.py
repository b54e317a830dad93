"""``metrics.json``: the metrics of an evaluation, and what was evaluated."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

from lightning.pytorch import Callback, LightningDataModule, LightningModule

from lightning_backdoor.callbacks import InferenceDefense
from lightning_backdoor.callbacks.run_labels import run_labels
from lightning_backdoor.data import BackdoorDataModule
from lightning_backdoor.files.atomic import write_whole
from lightning_backdoor.outputs.versions import versions


def write_metrics(
    path: Path,
    metrics: Mapping[str, float],
    model: LightningModule,
    data: LightningDataModule,
    callbacks: list[Callback],
    checkpoint: Path | None,
) -> None:
    """Writes ``metrics.json``.

    Metrics have the names by which they are logged, such as ``test/cacc``; a value that is not a finite number is null.
    Beside them are ``dataset``, ``model``, ``attack``, ``defense`` and ``seed`` as loggers get them, ``checkpoint``,
    ``rows`` (numbers of clean, poisoned and negative rows that were evaluated), ``thresholds`` (of inference-time
    defenses, by their names or, where they have none, their classes), ``model_precision`` (likewise, of defenses that
    have a model of their own), ``data`` (a hash of the rows of the data source, the same for all seeds) and
    ``versions``.

    Args:
        path: path of the file.
        metrics: the logged metrics.
        model: the model that was evaluated.
        data: its data module.
        callbacks: the trainer's callbacks.
        checkpoint: the checkpoint that was evaluated; None for the model as it is loaded.
    """
    stage = "test" if any(name.startswith("test/") for name in metrics) else "validation"
    defenses = {
        callback.name or type(callback.defense).__name__: callback.defense
        for callback in callbacks
        if isinstance(callback, InferenceDefense)
    }
    content = {
        **run_labels(model, data, callbacks),
        "checkpoint": None if checkpoint is None else str(checkpoint),
        "rows": evaluated_rows(data, stage) if isinstance(data, BackdoorDataModule) else {},
        "thresholds": {name: rounded(float(defense.threshold)) for name, defense in defenses.items()},
        "model_precision": {
            name: defense.model_precision for name, defense in defenses.items() if defense.model_precision is not None
        },
        "data": data.rows_hash if isinstance(data, BackdoorDataModule) else None,
        "versions": versions(),
        **{name: rounded(value) for name, value in metrics.items()},
    }
    write_whole(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def evaluated_rows(data: BackdoorDataModule, stage: str) -> dict[str, int]:
    """The numbers of clean, poisoned and negative rows that an evaluation reads.

    Args:
        data: the data module.
        stage: ``test`` or ``validation``, which reads the selection rows.
    """
    splits = data.poisoned_splits()
    clean, poisoned, negatives = (rows[stage] for rows in (splits.clean, splits.poisoned, splits.negatives))
    if stage == "validation":
        parts = data.clean_validation()
        clean, poisoned, negatives = parts.selection, parts.without_others(poisoned), parts.without_others(negatives)
    return {"clean": len(clean), "poisoned": len(poisoned), "negatives": len(negatives)}


def rounded(value: float) -> float | None:
    """A number in six digits, as many as all are right in single precision, in which metrics are computed.

    None if it is not finite, since JSON has no such number.

    >>> rounded(0.03333333507180214), rounded(float("nan"))
    (0.0333333, None)
    """
    return float(f"{value:.6g}") if math.isfinite(value) else None
