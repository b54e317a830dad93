"""The tables of the results: what their rows are called, and which rows stay when a part of the grid is run."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from lightning_backdoor.benchmark.table import COLUMNS
from tests.measurements.attack_tables import with_cells_before
from tests.measurements.cells import add_cells
from tests.measurements.second_opinion_tables import overview, table
from tests.measurements.write_results import INFERENCE, Results, defenses_table, with_rows_before
from tests.support.marked import marked, replace_marked


def write(path: Path, cells: list[tuple[str, str, str]], cacc: str = "0.9") -> Results:
    """A ``results.csv`` of cells of an attack, a defense and a number of clean rows."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="")
        writer.writeheader()
        for attack, defense, count in cells:
            asr = "" if attack == "none" else "1.0"
            writer.writerow(
                {"attack": attack, "defense": defense, "seed": "0", "n_clean": count, "cacc": cacc, "asr": asr}
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


def test_rows_stay_whose_cells_are_not_in_the_results(tmp_path: Path) -> None:
    before = [("BadNets", "none", "9"), ("BadNets", "DAN", "9"), ("BadNets", "STRIP", "4")]
    controls = [("BadNets", "clean training", "9"), ("none", "none", "9"), ("none", "DAN", "9")]
    old = defenses_table(write(tmp_path / "old.csv", before + controls), INFERENCE)
    now = [("BadNets", "none", "9"), ("BadNets", "STRIP", "9"), ("BadNets", "RAP", "9")]
    new = defenses_table(write(tmp_path / "new.csv", now, cacc="0.8"), INFERENCE)
    titles = [line.split("|")[1:3] for line in with_rows_before(new, old).splitlines()[2:]]
    assert [(title.strip(), cacc.strip()[:5]) for title, cacc in titles] == [
        ("**BadNets**", "0.800"),
        ("DAN", "0.900"),
        ("STRIP", "0.800"),
        ("RAP", "0.800"),
        ("*clean training, same rows*", "0.900"),
        ("**no attack**", "0.900"),
        ("DAN", "0.900"),
    ]


def test_a_row_of_one_seed_does_not_replace_one_of_several() -> None:
    heading = "| | CACC |\n|---|---|\n| **BadNets** | 0.9 |\n"
    several, one = (f"{heading}| DAN | {cell} |" for cell in ("0.800 ± 0.010", "0.700 (1 seed)"))
    assert with_rows_before(one, several) == several
    assert with_rows_before(several, one) == several


def test_a_file_of_cells_has_the_last_results_of_each_cell(tmp_path: Path) -> None:
    cells = tmp_path / "folder" / "cells.csv"
    write(tmp_path / "first.csv", [("BadNets", "none", "9"), ("BadNets", "DAN", "9")], cacc="0.9")
    write(tmp_path / "second.csv", [("BadNets", "DAN", "9"), ("none", "none", "9")], cacc="0.8")
    add_cells(tmp_path / "first.csv", cells)
    add_cells(tmp_path / "second.csv", cells)
    found = Results(cells)
    numbers = [found.number(*names, "0", "cacc") for names in (("BadNets", "none"), ("BadNets", "DAN"))]
    assert numbers == [0.9, 0.8]
    assert found.number("none", "none", "0", "cacc") == 0.8


def test_a_cell_that_failed_does_not_replace_one_that_did_not(tmp_path: Path) -> None:
    cells = tmp_path / "cells.csv"
    write(tmp_path / "first.csv", [("BadNets", "DAN", "9")])
    add_cells(tmp_path / "first.csv", cells)
    failed = dict.fromkeys(COLUMNS, "") | {"attack": "BadNets", "defense": "DAN", "seed": "0", "error": "no memory"}
    with (tmp_path / "second.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerow(failed)
    add_cells(tmp_path / "second.csv", cells)
    assert Results(cells).number("BadNets", "DAN", "0", "cacc") == 0.9


def test_cells_that_were_not_run_again_stay_in_the_tables_of_attacks() -> None:
    old = "| attack | ASR | DAN |\n| --- | --- | --- |\n| EP | 0.9 | 0.5 |\n| SOS | 0.8 | 0.4 |"
    new = "| attack | ASR | ONION | DAN |\n| --- | --- | --- | --- |\n| EP | 1.0 | 0.3 | – |\n| LWP | 0.7 | – | – |"
    rows = ["| EP | 1.0 | 0.3 | 0.5 |", "| LWP | 0.7 | – | – |", "| SOS | 0.8 | – | 0.4 |"]
    assert with_cells_before(new, old).splitlines()[2:] == rows
    assert with_cells_before(new, "") == new


def test_parts_between_marks_are_read_and_replaced_and_a_missing_mark_is_told(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- a -->\n<!-- /a -->\n\n<!-- b -->\n| x |\n<!-- /b -->\n", encoding="utf-8")
    assert (marked(page, "a"), marked(page, "b")) == ("", "| x |")
    replace_marked(page, {"a": "| y |"})
    assert (marked(page, "a"), marked(page, "b")) == ("| y |", "| x |")
    with pytest.raises(ValueError, match="has no part between <!-- c -->"):
        replace_marked(page, {"c": "| z |"})


def test_tables_of_second_opinion_show_means_over_seeds_and_the_distance_to_the_floor() -> None:
    def line(defense: str, seed: str, **columns: str) -> dict[str, str]:
        return {"dataset": "SST-2", "attack": "BadNets", "defense": defense, "seed": seed, "error": "", **columns}

    lines = [line("none", seed, cacc="0.9", asr="1.0") for seed in "01"]
    lines += [line("clean training", seed, cacc="0.9", asr=asr) for seed, asr in (("0", "0.1"), ("1", "0.2"))]
    for seed, after in (("0", "0.3"), ("1", "0.5")):
        columns = {"auroc_fooled": "0.75", "auroc": "0.5", "cacc": "0.9", "cacc_defended": "0.89", "fpr": "0.05"}
        lines.append(line("DAN", seed, asr_defended=after, **columns))
    shown = ["DAN", "0.750 ± 0.000", "0.500 ± 0.000", "0.400 ± 0.141", "0.250 ± 0.071", "-1.0 ± 0.0", "0.050 ± 0.000"]
    assert table(lines).splitlines()[-1] == f"| {' | '.join(shown)} |"
    row = ["BadNets", "0.900 ± 0.000", "1.000 ± 0.000", "0.150 ± 0.071", "0.750 / 0.400 / -1.0"]
    assert overview(lines).splitlines()[-1] == f"| {' | '.join(row)} |"
