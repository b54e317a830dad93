"""Attacks on the second opinion: victims trained to evade it, sets with few poisoned texts, and floods.

Run ``python -m tests.measurements.second_opinion_attacks --data sst2 --output runs/evasion``; the same command goes on
with an interrupted run. MiniLM is trained as ``configs/benchmark/minilm_sst2.yaml`` does, under one word and under a
syntactic trigger, without and with the adaptive penalties of ``configs/evasion``, and tested in one grid, of which
``second_opinion_tables.py`` makes a table. Floods and prevalence need no victims of their own: see
``second_opinion_floods.py``; their tables are printed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from lightning_backdoor.benchmark.grid import Grid
from lightning_backdoor.benchmark.running.journal import Journal
from lightning_backdoor.benchmark.running.products import NEEDED, Products
from lightning_backdoor.defenses.second_opinion_reading import MEAN, READOUT
from lightning_backdoor.defenses.text_states import depths
from lightning_backdoor.files.packaged import resolve
from tests.measurements.minilm_grid import config_of, console, cut_grid, options_of, run_grid
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
    for trigger, seed, checkpoint in plain_victims(grid, args):
        model = content["attacks"][f"{trigger}, no penalty"]["model"]
        console().print(flood_table(trigger, seed, checkpoint, model, content))
    return 0


if __name__ == "__main__":
    sys.exit(main())
