"""The tables of attacks in ``docs/results.md``, from the grids ``attacks.yaml`` and ``adaptive.yaml``.

Run ``python -m tests.measurements.attack_tables --attacks runs/attacks --adaptive runs/adaptive --write
docs/results.md``, with the folders of the grids. The grids can be run in parts, on several machines: ``--cells
docs/cells`` adds their cells to those of its ``attacks.csv`` and ``adaptive.csv``, from which the tables are made.
``--stealth runs/stealth`` measures the stealth of 100 poisoned test rows of each attack, as the command ``poison``
does, into that folder; attacks that it has are not measured again. Cells that have not been run are shown as dashes,
or, with ``--write``, stay as they are in the file.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import yaml

from lightning_backdoor.benchmark.grid import CLEAN_TRAINING, UNDEFENDED, Grid
from lightning_backdoor.cli import main as command
from tests.measurements.cells import Line, add_cells
from tests.measurements.write_results import MISSING, Results, mean_and_spread
from tests.support.marked import marked, replace_marked

ATTACK_COLUMNS = {"CACC": "cacc", "ASR": "asr", "floor": "asr_floor", "FTR": "ftr"}
DEFENSE_COLUMNS = {"ASR": "asr_defended", "AUROC": "auroc", "CACC": "cacc_defended"}
#: heading and key of each measure of stealth.
STEALTH = {"perplexity": "perplexity_increase", "similarity": "similarity", "word edits": "word_edits"}


def table(heading: list[str], rows: list[list[str]]) -> str:
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def number(lines: list[Line], column: str) -> str:
    """Mean and spread over seeds, or the number of the only seed."""
    return mean_and_spread(lines, column).removesuffix(" (1 seed)")


def of_texts(measured: dict[str, Any], key: str) -> str:
    """Mean and spread over texts of a measure of stealth."""
    if measured.get(key) is None:
        return MISSING
    digits = 2 if abs(measured[key]) < 100 else 0
    return f"{measured[key]:.{digits}f} ± {measured[f'{key}_spread']:.{digits}f}"


def attacks_table(results: Results, stealth: dict[str, dict[str, Any]]) -> str:
    """Each attack on its undefended victim, beside the clean control, and the stealth of its texts."""
    rows = []
    for attack in results.attacks:
        lines = results.over_seeds(attack, UNDEFENDED)
        control = results.over_seeds(attack, CLEAN_TRAINING)
        own = [number(lines, column) for column in ATTACK_COLUMNS.values()]
        valid = [line["valid"] for line in lines]
        measured = stealth.get(attack, {})
        texts = [of_texts(measured, key) for key in STEALTH.values()]
        verdict = "" if not any(valid) else f"{valid.count('yes')} of {len(valid)}"
        rows.append([attack, *own, number(control, "asr"), verdict, *texts])
    return table(["attack", *ATTACK_COLUMNS, "ASR, clean training", "valid seeds", *STEALTH], rows)


def defended_table(results: Results) -> str:
    """ASR and AUROC of each attack under each defense."""
    defenses = [name for name in results.defenses if name not in (UNDEFENDED, CLEAN_TRAINING)]
    rows = []
    for attack in results.attacks:
        plain = results.over_seeds(attack, UNDEFENDED)
        cells = [number(plain, "cacc"), number(plain, "asr")]
        for defense in defenses:
            lines = results.over_seeds(attack, defense)
            shown = " / ".join(number(lines, column) for column in DEFENSE_COLUMNS.values())
            cells.append(shown if lines else MISSING)
        if {*cells} != {MISSING}:
            rows.append([attack, *cells])
    return table(["attack", "CACC", "ASR", *defenses], rows)


def measured_stealth(grid: Grid, folder: Path) -> dict[str, dict[str, Any]]:
    """The stealth of each attack's texts by its name, measured where the folder has none."""
    found: dict[str, dict[str, Any]] = {}
    for cell in grid.cells:
        attack, target = cell.attack, folder / cell.attack
        if attack in ("none", *found) or cell.defense != UNDEFENDED:
            continue
        if not target.exists():
            config = folder / f"{attack}.yaml"
            config.write_text(yaml.safe_dump(cell.victim.config), encoding="utf-8")
            if command(["poison", "--config", str(config), "--output", str(target), "--stealth_rows", "100"]):
                continue
        found[attack] = json.loads((target / "stealth.json").read_text(encoding="utf-8"))
    return found


def with_cells_before(new: str, old: str) -> str:
    """A table with what another has in the rows and columns of its names: instead of dashes, and rows it lacks."""
    heading, rule, *_ = new.splitlines()
    names, after, before = heading.strip("| ").split(" | "), _rows(new), _rows(old)
    rows = []
    for attack in dict.fromkeys([*after, *before]):
        cells = after.get(attack, {names[0]: attack})
        others = before.get(attack, {})
        shown = [cells.get(name, MISSING) for name in names]
        rows.append(
            [others.get(name, MISSING) if cell == MISSING else cell for name, cell in zip(names, shown, strict=True)]
        )
    return "\n".join([heading, rule, *(f"| {' | '.join(row)} |" for row in rows)])


def _rows(text: str) -> dict[str, dict[str, str]]:
    """The cells of a table by the name of the row and the heading of the column."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    return {row[0]: dict(zip(lines[0], row, strict=True)) for row in lines[2:]}


def results_of(folder: Path, cells: Path | None, name: str) -> Results:
    """The results of a grid's folder, or those of a file of cells after they have been added to it."""
    results = folder / "results.csv"
    if cells is None:
        return Results(results)
    add_cells(results, cells / f"{name}.csv")
    return Results(cells / f"{name}.csv")


def main() -> None:
    parser = argparse.ArgumentParser(description="The tables of attacks in docs/results.md.")
    parser.add_argument("--attacks", type=Path, help="folder of the grid attacks.yaml")
    parser.add_argument("--adaptive", type=Path, help="folder of the grid adaptive.yaml")
    parser.add_argument("--cells", type=Path, help="folder of the files of cells")
    parser.add_argument("--stealth", type=Path, help="folder in which stealth is measured")
    parser.add_argument("--write", type=Path, help="file whose marked parts are replaced by the tables")
    args = parser.parse_args()
    tables: dict[str, str] = {}
    if args.attacks:
        results = results_of(args.attacks, args.cells, "attacks")
        stealth: dict[str, dict[str, Any]] = {}
        if args.stealth:
            args.stealth.mkdir(parents=True, exist_ok=True)
            stealth = measured_stealth(Grid(Path("configs/benchmark/attacks.yaml"), args.attacks), args.stealth)
        tables |= {"attacks": attacks_table(results, stealth), "attacks under defenses": defended_table(results)}
    if args.adaptive:
        tables["adaptive"] = defended_table(results_of(args.adaptive, args.cells, "adaptive"))
    if args.write:
        replace_marked(
            args.write, {name: with_cells_before(new, marked(args.write, name)) for name, new in tables.items()}
        )
    else:
        print("\n\n".join(tables.values()))


if __name__ == "__main__":
    main()
