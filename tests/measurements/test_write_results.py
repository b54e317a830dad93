"""The tables of the results: what their rows are called."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from lightning_backdoor.benchmark.table import COLUMNS
from tests.measurements.write_results import INFERENCE, Results, defenses_table


def write(path: Path, cells: list[tuple[str, str, str]]) -> Results:
    """A ``results.csv`` of cells of an attack, a defense and a number of clean rows."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="")
        writer.writeheader()
        for attack, defense, count in cells:
            asr = "" if attack == "none" else "1.0"
            writer.writerow(
                {"attack": attack, "defense": defense, "seed": "0", "n_clean": count, "cacc": "0.9", "asr": asr}
            )
    return Results(path)


@pytest.mark.parametrize(
    ("attack", "rows"), [("BadNets", "400 clean, their poisoned rows"), ("none", "400 clean rows")]
)
def test_a_defense_that_was_tested_on_fewer_rows_says_so(attack: str, rows: str, tmp_path: Path) -> None:
    cells = [(attack, "none", "1821"), (attack, "STRIP", "1821"), (attack, "substitution voting", "400")]
    table = defenses_table(write(tmp_path / "results.csv", cells), INFERENCE)
    assert "| STRIP | 0.900" in table
    assert f"| substitution voting ({rows}) | 0.900" in table
