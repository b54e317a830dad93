"""The table of results: a column for each run and defense, and no number in the wrong one."""

from __future__ import annotations

import io
import math

import pytest
from rich.console import Console

from lightning_backdoor.outputs.terminal_table import print_results, results_table

PLAIN = {"test/cacc": 0.91, "test/asr": 0.99, "test/pacc": 0.01, "test/asr_floor": 0.06}
DEFENDED = {
    **{"cacc_defended": 0.9, "asr_defended": 0.2, "pacc_defended": 0.7, "asr_floor_defended": 0.05},
    **{"auroc": 0.95, "tpr": 0.8, "fpr": 0.1, "localisation": math.nan, "overhead": 3.2},
}


def shown(runs: dict[str, dict[str, float]]) -> tuple[list[str], dict[str, list[str]]]:
    """Headings, and the cells of each row by its name, as they are printed."""
    console = Console(width=400, color_system=None)
    with console.capture() as capture:
        console.print(results_table(runs))
    head, cells = [], {}
    for line in capture.get().splitlines():
        parts = [part.strip() for part in line.replace("┃", "│").strip("│").split("│")]
        if "│" in line:
            cells[parts[0]] = parts[1:]
        elif "┃" in line:
            head.append(parts[1:])
    return [" ".join(filter(None, column)) for column in zip(*head, strict=True)], cells


def test_one_defense_has_a_column_beside_the_undefended() -> None:
    head, cells = shown({"BadNets": {**PLAIN, **{f"test/{name}": value for name, value in DEFENDED.items()}}})
    assert head == ["BadNets undefended", "BadNets defended"]
    assert cells == {
        "CACC": ["0.910", "0.900"],
        "ASR": ["0.990", "0.200"],
        "PACC": ["0.010", "0.700"],
        "ASR floor": ["0.060", "0.050"],
        "AUROC": ["", "0.950"],
        "TPR": ["", "0.800"],
        "FPR": ["", "0.100"],
        "Localisation": ["", "undefined"],
        "Overhead": ["", "3.200"],
    }


def test_each_named_defense_has_a_column_and_runs_may_differ() -> None:
    two = {
        f"test/{name}/{key}": value + add
        for name, add in (("[b]", 0.0), ("x/y", 0.01))
        for key, value in DEFENDED.items()
    }
    head, cells = shown({"benign": {"test/cacc": 0.92}, "BadNets": {**PLAIN, **two}})
    assert head == ["benign undefended", "BadNets undefended", "BadNets [b]", "BadNets x/y"]
    assert cells["CACC"] == ["0.920", "0.910", "0.900", "0.910"]
    assert cells["ASR"] == ["", "0.990", "0.200", "0.210"]
    assert cells["TPR"] == ["", "", "0.800", "0.810"]


def test_numbers_of_validation_are_shown_where_there_was_no_test_and_never_mixed_in() -> None:
    validation = {name.replace("test/", "val/"): value - 0.005 for name, value in PLAIN.items()}
    validation["val/cacc_defended"] = 0.5
    assert shown({"fit": validation})[1]["CACC"] == ["0.905", "0.500"]
    head, cells = shown({"test": {**validation, **PLAIN}})
    assert head == ["test undefended"]
    assert cells["CACC"] == ["0.910"]


def test_negatives_and_inspections_have_rows_and_a_named_inspection_a_column() -> None:
    inspected = {"test/inspection_score": 12.5, "test/inspection_p_value": 3.2e-13, "test/x/inspection_score": 1.5}
    defended = {"test/cacc_defended": 0.9, "test/ftr_defended": 0.1}
    head, cells = shown({"BadNets": {**PLAIN, "test/ftr": 0.25, **defended, **inspected}})
    assert head == ["BadNets undefended", "BadNets defended", "BadNets x"]
    assert cells["FTR"] == ["0.250", "0.100", ""]
    assert cells["Inspection score"] == ["12.500", "", "1.500"]
    assert cells["Inspection p-value"] == ["3.2e-13", "", ""]
    assert cells["CACC"] == ["0.910", "0.900", ""]


def test_it_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    print_results({"BadNets": PLAIN})
    assert "0.910" in capsys.readouterr().out


def test_names_are_shown_as_they_are_without_markup_and_escape_codes() -> None:
    metrics = {"test/cacc": 0.5, "test/[link=x]\x1b[31m/cacc_defended": 0.25}
    console = Console(file=io.StringIO(), width=200, force_terminal=False)
    console.print(results_table({"[red]run\x1b[0m\x07": metrics}))
    assert isinstance(console.file, io.StringIO)
    printed = console.file.getvalue()
    assert "[red]run\\x1b[0m\\x07" in printed
    assert "[link=x]\\x1b[31m" in printed
    assert "\x1b" not in printed
