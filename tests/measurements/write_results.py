"""The tables of ``docs/results.md``, from the ``results.csv`` of the grid ``configs/benchmark/minilm_sst2.yaml``.

Run ``python -m tests.measurements.write_results --results runs/minilm_sst2/results.csv --cells
docs/cells/minilm_sst2.csv --write docs/results.md``; ``--tables`` names some of the tables. The grid can be run in
parts, on several machines: ``--cells`` names a file of cells to which those of the results are added, and from which
the tables are made. In the tables of defenses, rows of which the file has no cells are kept as they are.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path

from lightning_backdoor.benchmark.grid import CLEAN_TRAINING, UNDEFENDED
from tests.measurements.cells import Line, add_cells, finished
from tests.support.marked import marked, replace_marked

MISSING = "–"
SEEDS = ("0", "1", "2")
ATTACKS = (
    "BadNets",
    "BadNets, clean label",
    "InsertSent",
    "syntactic, published paraphrases",
    "style (Bible), published paraphrases",
    "RIPPLES",
    "LWS",
)
#: the attacks against which MuScleLoRA is measured for every seed.
MUSCLE_LORA_ATTACKS = ATTACKS[:3]
#: RIPPLES under MuScleLoRA: the attacker publishes weights, and the user trains them under the defense.
IN_THE_USERS_PHASE = {("RIPPLES", "MuScleLoRA"): ("RIPPLES, attacker's phase", "MuScleLoRA, user's phase")}
TRUSTED_ROWS_ONLY = "trusted rows only"
#: the parts of MuScleLoRA that the ablation turns on.
ABLATION = (
    "low rank",
    "multi-scale",
    "alignment",
    "low rank, multi-scale",
    "low rank, alignment",
    "multi-scale, alignment",
)

#: a heading and the column of ``results.csv`` under it, for defenses that leave the victim as it is.
INFERENCE = {
    "CACC": "cacc",
    "ASR": "asr",
    "CACC defended": "cacc_defended",
    "ASR defended": "asr_defended",
    "AUROC": "auroc",
    "TPR": "tpr",
    "FPR": "fpr",
}
#: the same for those that train another victim, or change it.
TRAINING = {
    "CACC": "cacc",
    "ASR": "asr",
    "floor": "asr_floor",
    "rows removed": "cleaning_removed",
    "precision": "cleaning_precision",
    "recall": "cleaning_recall",
}
#: the same for those that judge the victim itself.
OF_THE_MODEL = {"CACC": "cacc", "ASR": "asr", "score": "inspection_score", "p": "inspection_p_value"}
#: defenses whose cells are in a table of their own.
ELSEWHERE = (*ABLATION, UNDEFENDED)


class Results:
    """The cells of a grid, found by attack, defense and seed.

    Args:
        path: of ``results.csv``, or a file of cells.
    """

    def __init__(self, path: Path) -> None:
        lines = finished(path)
        self._lines = {(line["attack"], line["defense"], line["seed"]): line for line in lines}
        #: names of attacks and defenses, in the order of the grid.
        self.attacks = list(dict.fromkeys(line["attack"] for line in lines))
        self.defenses = list(dict.fromkeys(line["defense"] for line in lines))

    def over_seeds(self, attack: str, defense: str) -> list[Line]:
        """The cells of an attack and a defense, one per seed that has been run."""
        return [line for seed in SEEDS if (line := self._lines.get((attack, defense, seed)))]

    def number(self, attack: str, defense: str, seed: str, column: str) -> float | None:
        """One number of a cell; None where the cell has not been run or the number is undefined."""
        return _number(self._lines.get((attack, defense, seed), {}).get(column, ""))


def _number(text: str) -> float | None:
    return float(text) if text else None


def mean_and_spread(lines: Sequence[Line], column: str) -> str:
    """Mean and standard deviation over seeds."""
    numbers = [number for line in lines if (number := _number(line[column])) is not None]
    digits = 0 if column == "cleaning_removed" else 3
    if len(numbers) < 2:
        return f"{numbers[0]:.{digits}f} (1 seed)" if numbers else MISSING
    return f"{statistics.mean(numbers):.{digits}f} ± {statistics.stdev(numbers):.{digits}f}"


def markdown_row(title: str, lines: Sequence[Line], columns: Sequence[str | None]) -> str:
    cells = ["" if column is None else mean_and_spread(lines, column) for column in columns]
    return f"| {' | '.join([title, *cells])} |"


def columns_of(line: Line) -> dict[str, str]:
    """Headings and columns of the table to which a cell belongs."""
    if line["training"]:
        return TRAINING
    return OF_THE_MODEL if line["inspection_score"] else INFERENCE


def rows_tested(lines: Sequence[Line], undefended: Sequence[Line]) -> str:
    """What the title of a row adds where the defense was tested on fewer rows than the victim without it."""
    count, whole = (
        min((int(line["n_clean"]) for line in cells if line["n_clean"]), default=0) for cells in (lines, undefended)
    )
    if not 0 < count < whole:
        return ""
    return f" ({count} clean{', their poisoned' if lines[0]['asr'] else ''} rows)"


def defenses_table(results: Results, columns: dict[str, str]) -> str:
    """Attacks against the defenses of one table, in the order of the grid, with the undefended victim first."""
    rows = [f"| | {' | '.join(columns)} |", "|---|" + "---|" * len(columns)]
    for attack in (*ATTACKS, "none"):
        undefended = results.over_seeds(attack, UNDEFENDED)
        if not undefended:
            continue
        known = [line["valid"] for line in undefended if line["valid"]]
        mark = f" ({known.count('no')} of {len(known)} seeds invalid)" if "no" in known else ""
        name = "no attack" if attack == "none" else attack
        own = [column if column in ("cacc", "asr", "asr_floor") else None for column in columns.values()]
        of_defenses = []
        for defense in results.defenses:
            lines = results.over_seeds(*IN_THE_USERS_PHASE.get((attack, defense), (attack, defense)))
            if not lines or defense in ELSEWHERE or columns_of(lines[0]) is not columns:
                continue
            control = defense in (CLEAN_TRAINING, TRUSTED_ROWS_ONLY)
            title = f"*{defense}, same rows*" if control else defense
            title += rows_tested(lines, undefended)
            of_defenses.append(markdown_row(title, lines, [*columns.values()]))
        if of_defenses:
            rows += [markdown_row(f"**{name}**{mark}", undefended, own), *of_defenses]
    return "\n".join(rows)


def _rows_by_title(table: str) -> dict[str, dict[str, str]]:
    """The lines of a table of defenses by attack and defense; that of the undefended victim under an empty name."""
    found: dict[str, dict[str, str]] = {}
    for line in table.splitlines()[2:]:
        title = line.split("|")[1].strip()
        if title.startswith("**"):
            rows = found.setdefault(title.split("**")[1], {})
            rows[""] = line
        else:
            rows[title.strip("*").partition(" (")[0]] = line
    return found


def with_rows_before(table: str, older: str) -> str:
    """A table of defenses with those rows of an older one that it lacks, or has of one seed where that has several.

    Controls stay behind the defenses.
    """
    new, old = _rows_by_title(table), _rows_by_title(older)
    lines = table.splitlines()[:2]
    for attack in (*ATTACKS, "no attack"):
        before, now = old.get(attack, {}), new.get(attack, {})
        now = {name: row for name, row in now.items() if "±" in row or "±" not in before.get(name, "")}
        rows = [*(before | now).values()]
        lines += sorted(rows, key=lambda line: line.startswith("| *") and not line.startswith("| **"))
    return "\n".join(lines)


def bar_table(results: Results) -> str:
    """Which runs under MuScleLoRA have an excess ASR of at most 0.05 and a CACC 0.03 above the control."""
    rows = ["| | seed | excess ASR | CACC above the control | reaches the bar |", "|---|---|---|---|---|"]
    reached = []
    for attack in MUSCLE_LORA_ATTACKS:
        for seed in SEEDS:
            asr, floor, cacc = (
                results.number(attack, "MuScleLoRA", seed, column) for column in ("asr", "asr_floor", "cacc")
            )
            control = results.number("none", TRUSTED_ROWS_ONLY, seed, "cacc")
            if asr is None or floor is None or cacc is None or control is None:
                continue
            reached.append(asr - floor <= 0.05 and cacc - control >= 0.03)
            answer = "yes" if reached[-1] else "no"
            rows.append(f"| {attack} | {seed} | {asr - floor:+.3f} | {cacc - control:+.3f} | {answer} |")
    return "\n".join([*rows, "", f"{sum(reached)} of {len(reached)} runs reach the bar."])


def ablation_table(results: Results) -> str:
    """The parts of MuScleLoRA on clean-label BadNets, seed 0."""
    rows = ["| trained with | CACC | ASR | ASR floor | excess ASR |", "|---|---|---|---|---|"]
    names = {"no defense": UNDEFENDED, **{name: name for name in ABLATION}, "all": "MuScleLoRA"}
    for title, defense in names.items():
        columns = ("cacc", "asr", "asr_floor")
        cacc, asr, floor = (results.number("BadNets, clean label", defense, "0", column) for column in columns)
        excess = None if asr is None or floor is None else asr - floor
        cells = [MISSING if number is None else f"{number:.3f}" for number in (cacc, asr, floor, excess)]
        rows.append(f"| {' | '.join([title, *cells])} |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description="The tables of docs/results.md, from a grid's results.csv.")
    parser.add_argument("--results", type=Path, required=True, help="results.csv of the grid")
    parser.add_argument("--cells", type=Path, help="file of cells to which those of the results are added")
    parser.add_argument("--write", type=Path, help="file whose marked parts are replaced by the tables")
    parser.add_argument("--tables", nargs="+", help="inference, training, model, bar, ablation; all by default")
    args = parser.parse_args()
    if not args.results.is_file():
        parser.error(f"--results: there is no file {args.results}")
    if args.cells:
        add_cells(args.results, args.cells)
    results = Results(args.cells or args.results)
    tables = {
        "inference": defenses_table(results, INFERENCE),
        "training": defenses_table(results, TRAINING),
        "model": defenses_table(results, OF_THE_MODEL),
        "bar": bar_table(results),
        "ablation": ablation_table(results),
    }
    if args.tables:
        tables = {name: tables[name] for name in args.tables}
    if args.write:
        for name in {"inference", "training", "model"} & tables.keys():
            tables[name] = with_rows_before(tables[name], marked(args.write, name))
        replace_marked(args.write, tables)
    else:
        print("\n\n".join(tables.values()))


if __name__ == "__main__":
    main()
