"""The record of a data defense, written and logged when training starts."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger

from lightning_backdoor.attacks import BadNets
from lightning_backdoor.batch import Victim
from lightning_backdoor.callbacks import CleaningWriter, OutputFolder
from lightning_backdoor.data.cleaning import CleaningRecord, DataDefense, LabelledText, TrustedRows
from tests.support.reviews import reviews


class Unchanged(DataDefense):
    """Leaves all rows as they are, by a model of its own."""

    @property
    def model_precision(self) -> str:
        return "bf16-true"

    def clean(self, rows: Sequence[LabelledText], trusted: TrustedRows, victim: Victim | None) -> list[str | None]:
        return [row.text for row in rows]


@pytest.fixture
def fit(tmp_path: Path, tiny_folder: Callable[[str], str]) -> Callable[..., None]:
    def run(record: CleaningRecord | None, defense: DataDefense | None = None) -> None:
        data: Any = reviews(tmp_path)
        data.data_defense = defense
        if record is not None:
            data.cleaning = record
        trainer = Trainer(
            accelerator="cpu",
            max_steps=1,
            limit_val_batches=0,
            log_every_n_steps=1,
            logger=CSVLogger(tmp_path, name="log", version=""),
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[CleaningWriter(), OutputFolder(tmp_path / "run")],
        )
        trainer.fit(BadNets(model=tiny_folder("bert")), datamodule=data)

    return run


def logged(folder: Path) -> dict[str, str]:
    with (folder / "log" / "metrics.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: value for row in rows for name, value in row.items() if name.startswith("cleaning/") and value}


def test_the_record_is_written_and_logged(tmp_path: Path, fit: Callable[[CleaningRecord | None], None]) -> None:
    fit(CleaningRecord(rows=100, removed=9, changed=3, precision=0.75, recall=0.5))
    written = json.loads((tmp_path / "run" / "cleaning.json").read_text(encoding="utf-8"))
    assert written == {"rows": 100, "removed": 9, "changed": 3, "precision": 0.75, "recall": 0.5}
    assert {name: float(value) for name, value in logged(tmp_path).items()} == {
        f"cleaning/{name}": value for name, value in written.items()
    }


def test_shares_that_do_not_exist_are_null_and_not_logged(
    tmp_path: Path, fit: Callable[[CleaningRecord | None], None]
) -> None:
    fit(CleaningRecord(rows=100, removed=0, changed=0, precision=math.nan, recall=0.0))
    written = json.loads((tmp_path / "run" / "cleaning.json").read_text(encoding="utf-8"))
    assert written == {"rows": 100, "removed": 0, "changed": 0, "precision": None, "recall": 0.0}
    assert logged(tmp_path).keys() == {"cleaning/rows", "cleaning/removed", "cleaning/changed", "cleaning/recall"}


def test_the_precision_of_a_defenses_own_model_is_written(tmp_path: Path, fit: Callable[..., None]) -> None:
    fit(None, Unchanged())
    written = json.loads((tmp_path / "run" / "cleaning.json").read_text(encoding="utf-8"))
    assert (written["changed"], written["model_precision"]) == (0, "bf16-true")


def test_without_a_data_defense_nothing_is_written(
    tmp_path: Path, fit: Callable[[CleaningRecord | None], None]
) -> None:
    fit(None)
    assert not (tmp_path / "run" / "cleaning.json").exists()
    assert logged(tmp_path) == {}
