"""Attacks on the second opinion: victims trained to evade it, sets with few poisoned texts, and floods.

Run ``python -m tests.measurements.second_opinion_attacks --data sst2 --output runs/evasion``; the same command goes on
with an interrupted run, and prints the tables again. MiniLM is trained as ``configs/benchmark/minilm_sst2.yaml`` does,
under one word and under a syntactic trigger, without and with the adaptive penalties of ``configs/evasion``, and tested
in one grid. Floods and prevalence need no victims of their own: see ``second_opinion_floods.py``.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from transformers import AutoConfig

from lightning_backdoor.benchmark.grid import CLEAN_TRAINING, Cell, Grid
from lightning_backdoor.benchmark.running.journal import Journal
from lightning_backdoor.benchmark.running.products import NEEDED, Products
from lightning_backdoor.defenses.second_opinion_reading import MEAN, READOUT
from lightning_backdoor.defenses.text_states import depths
from lightning_backdoor.files.packaged import resolve
from lightning_backdoor.outputs.outcomes import read_outcomes
from tests.measurements.detector_auroc import auroc
from tests.measurements.minilm_grid import config_of, console, cut_grid, options_of, results_of, run_grid
from tests.measurements.second_opinion_floods import flood_table

SECOND_OPINION = "lightning_backdoor.defenses.SecondOpinion"
DEFENSES: dict[str, dict[str, Any]] = {
    "T3 + F + FM": {"class_path": SECOND_OPINION},
    "T3": {"class_path": SECOND_OPINION, "init_args": {"set_parts": ["text"]}},
    "F + FM by gap": {
        "class_path": SECOND_OPINION,
        "init_args": {"text_parts": ["gap"], "set_parts": ["readout", "mean"]},
    },
    "gap": {"class_path": SECOND_OPINION, "init_args": {"text_parts": ["gap"], "set_parts": ["text"]}},
    "DAN": {"class_path": "lightning_backdoor.defenses.Dan", "init_args": {"fpr": 0.05}},
    "X-GRAAD": {"class_path": "lightning_backdoor.defenses.GradientAttention", "init_args": {"fpr": 0.05}},
}
#: the attacks of the grid of results.md that the penalties are put beside.
TRIGGERS = {"cf": "BadNets", "syntactic": "syntactic, published paraphrases"}


def penalties(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """The fragment beside each attack, by the name of the penalty."""
    margins = {f"soft label {p:g}": {"target_probability": p} for p in args.probabilities}
    states = {f"states x {strength:g}": {"strength": strength, **read_layers(args)} for strength in args.strengths}
    callbacks = {"SmallMargin": margins, "StateMatching": states}
    return {"no penalty": {}} | {
        name: {"trainer": {"callbacks+": [{"class_path": f"lightning_backdoor.callbacks.{callback}", "init_args": of}]}}
        for callback, fragments in callbacks.items()
        for name, of in fragments.items()
    }


def read_layers(args: argparse.Namespace) -> dict[str, list[int]]:
    """The layers of the victim of which second opinion takes directions, as arguments of state matching."""
    model = cut_grid(args, [], {})["models"]["MiniLM"]
    layers = AutoConfig.from_pretrained(resolve(model)).num_hidden_layers
    return {"readout_layers": [*depths(layers, READOUT)], "mean_layers": [*depths(layers, MEAN)]}


def grid_content(args: argparse.Namespace) -> dict[str, Any]:
    """The grid of results.md, cut to two attacks, with each penalty beside them."""
    content = cut_grid(args, [TRIGGERS[trigger] for trigger in args.triggers], {"test": args.rows} if args.rows else {})
    adaptive = {
        f"{trigger}, {name}": {"model": content["attacks"][TRIGGERS[trigger]], **callbacks}
        for trigger in args.triggers
        for name, callbacks in penalties(args).items()
    }
    content["attacks"] = {"none": {"class_path": "lightning_backdoor.victim.TextClassifier"}, **adaptive}
    content["exclude"] = {"attack": "none", "defense": [*DEFENSES]}
    content["defenses"] = {"none": None} | {name: {"inference": of} for name, of in DEFENSES.items()}
    return content


def attack_table(grid: Grid, args: argparse.Namespace) -> Table:
    """What each penalty does to the attack and to each defense: means over seeds."""
    table = Table(title="AUROC of poisoned texts that fool the victim (of all); ASR and CACC after repair at 5 %")
    for heading in ("attack", "defense", "CACC", "ASR", "AUROC", "ASR after", "CACC after", "FPR"):
        table.add_column(heading)
    rows = {line["cell"]: line for line in results_of(args.output)}
    products = Products(args.output, Journal(args.output / "journal.jsonl"))
    for attack in dict.fromkeys(cell.attack for cell in grid.cells):
        for defense in dict.fromkeys(cell.defense for cell in grid.cells):
            cells = [cell for cell in grid.cells if (cell.attack, cell.defense) == (attack, defense)]
            found = [rows[cell.id] for cell in cells if cell.id in rows]
            if not found or defense == "none":
                continue
            columns = ("cacc", "asr", "auroc", "asr_defended", "cacc_defended", "fpr")
            mean = {column: mean_of(row[column] for row in found) for column in columns}
            fooling = mean_of(fooling_auroc(products, cell) for cell in cells if cell.id in rows)
            area = f"{fooling} ({mean['auroc']})" if defense != CLEAN_TRAINING else "–"
            after = (mean[column] for column in ("asr_defended", "cacc_defended", "fpr"))
            table.add_row(attack, defense, mean["cacc"], mean["asr"], area, *after)
        table.add_section()
    return table


def fooling_auroc(products: Products, cell: Cell) -> str:
    """The AUROC of the poisoned rows that the victim predicts as the target, against all clean rows."""
    outcomes = read_outcomes(products.folder_of(cell) / NEEDED["cell"])
    clean = [outcome.score for outcome in outcomes if not outcome.poisoned]
    fooling = [o.score for o in outcomes if o.poisoned and o.prediction == o.target_label]
    if not fooling or None in clean:
        return ""
    return str(auroc(torch.tensor(clean), torch.tensor(fooling)))


def mean_of(values: Iterable[str]) -> str:
    numbers = [float(value) for value in values if value]
    return f"{statistics.mean(numbers):.3f}" if numbers else "–"


def plain_victims(grid: Grid, args: argparse.Namespace) -> list[tuple[str, int, Path]]:
    """Trigger, seed and checkpoint of the victims without a penalty."""
    products = Products(args.output, Journal(args.output / "journal.jsonl"))
    found = {}
    for cell in grid.cells:
        trigger, _, penalty = cell.attack.partition(", ")
        checkpoint = products.folder_of(cell.victim) / NEEDED["victim"]
        if penalty == "no penalty" and cell.defense == "none" and checkpoint.exists():
            found[cell.victim.id] = (trigger, cell.victim.seed, checkpoint)
    return list(found.values())


def parse(given: Sequence[str] | None = None) -> argparse.Namespace:
    options = options_of("Attacks on the second opinion.", seeds=[3])
    options.add_argument("--probabilities", type=float, nargs="*", default=[0.65])
    options.add_argument("--strengths", type=float, nargs="*", default=[0.3, 1.0, 3.0])
    options.add_argument("--triggers", choices=TRIGGERS, nargs="+", default=[*TRIGGERS])
    options.add_argument("--rows", type=int, help="clean test rows (default: all)")
    options.add_argument("--floods", action="store_true", help="only floods and prevalence, on victims that are there")
    args = options.parse_args(given)
    args.data, args.output = args.data.resolve(), args.output.resolve()
    return args


def main() -> int:
    args = parse()
    content = grid_content(args)
    status = 0 if args.floods else run_grid(content, args.output)
    if status:
        return status
    grid = Grid(config_of(args.output), args.output)
    if not args.floods:
        console().print(attack_table(grid, args))
    for trigger, seed, checkpoint in plain_victims(grid, args):
        model = content["attacks"][f"{trigger}, no penalty"]["model"]
        console().print(flood_table(trigger, seed, checkpoint, model, content))
    return 0


if __name__ == "__main__":
    sys.exit(main())
