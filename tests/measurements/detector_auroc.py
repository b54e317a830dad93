"""How well defenses that read hidden states find syntactic and style poison, over seeds, and in which layers.

Run ``python -m tests.measurements.detector_auroc --data sst2 --output runs/detectors``; the same command continues an
interrupted run, and prints the tables again. It trains MiniLM as ``configs/benchmark/minilm_sst2.yaml`` does, under
its two attacks by published paraphrases, and tests the detectors in one grid. The second table tells where seeds
differ: the AUROC of the distance to the nearest class mean (DAN) in each layer alone.
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
from torch import Tensor

from lightning_backdoor.attacks import BackdoorAttack, StyleTransfer, Syntactic
from lightning_backdoor.batch import Batch
from lightning_backdoor.benchmark.grid import Cell, Grid
from lightning_backdoor.benchmark.running.journal import Journal
from lightning_backdoor.benchmark.running.products import NEEDED, Products
from lightning_backdoor.data import BackdoorDataModule, Source
from lightning_backdoor.defenses import Dan
from lightning_backdoor.defenses.hidden_states import token_states
from lightning_backdoor.language import FileParaphraser
from lightning_backdoor.victim import load_trained
from tests.measurements.minilm_grid import config_of, console, cut_grid, options_of, results_of, run_grid

DEFENSES: dict[str, dict[str, Any]] = {
    "DAN": {"class_path": "lightning_backdoor.defenses.Dan"},
    "DAN, largest layer": {"class_path": "lightning_backdoor.defenses.Dan", "init_args": {"layers": "max"}},
    "BadActs": {"class_path": "lightning_backdoor.defenses.BadActs", "init_args": {"epochs": 0}},
    "DUP": {"class_path": "lightning_backdoor.defenses.Dup"},
    "LCF": {"class_path": "lightning_backdoor.defenses.LCF"},
    "LCF, last token": {"class_path": "lightning_backdoor.defenses.LCF", "init_args": {"token": "last"}},
}
ATTACKS: dict[str, type[BackdoorAttack]] = {
    "syntactic, published paraphrases": Syntactic,
    "style (Bible), published paraphrases": StyleTransfer,
}


def grid_content(args: argparse.Namespace) -> dict[str, Any]:
    """The grid of results.md, cut to two attacks, with these defenses."""
    defenses = {name: {"inference": of} for name, of in DEFENSES.items()}
    return {**cut_grid(args, ATTACKS, rows_of(args)), "defenses": defenses}


def rows_of(args: argparse.Namespace) -> dict[str, int]:
    return {"validation": args.rows, "test": args.rows} if args.rows else {}


def cells_table(lines: Sequence[dict[str, str]]) -> Table:
    """AUROC against all clean rows and against those predicted as the target, by seed and with their spread."""
    table = Table(title="AUROC (against clean rows predicted as the target), mean ± standard deviation over seeds")
    for heading in ("attack", "defense", "seed by seed", "AUROC", "against target", "TPR", "FPR"):
        table.add_column(heading)
    for attack in ATTACKS:
        own = [line for line in lines if line["attack"] == attack]
        victims = {line["seed"]: f"{float(line['asr']):.2f}" for line in own}
        table.add_row(attack, "ASR", " ".join(victims.values()))
        for defense in DEFENSES:
            of = [line for line in own if line["defense"] == defense]
            each = " ".join(f"{float(line['auroc']):.3f}" for line in of)
            columns = ("auroc", "auroc_target", "tpr", "fpr")
            table.add_row("", defense, each, *(spread(line[column] for line in of) for column in columns))
    return table


def spread(texts: Iterable[str]) -> str:
    numbers = [float(text) for text in texts if text]
    if not numbers:
        return "–"
    deviation = f" ± {statistics.stdev(numbers):.3f}" if len(numbers) > 1 else ""
    return f"{statistics.mean(numbers):.3f}{deviation}"


def layers_table(grid: Grid, args: argparse.Namespace) -> Table:
    """The AUROC of each layer's distance, by victim."""
    table = Table(title="AUROC of the distance to the nearest class mean, by layer")
    for heading in ("attack", "seed", "layers, the first one first"):
        table.add_column(heading)
    products = Products(args.output, Journal(args.output / "journal.jsonl"))
    done = set()
    for cell in grid.cells:
        checkpoint = products.folder_of(cell.victim) / NEEDED["victim"]
        if cell.victim.id in done or not checkpoint.exists():
            continue
        done.add(cell.victim.id)
        found = layer_aurocs(checkpoint, cell, args)
        table.add_row(cell.attack, str(cell.victim.seed), " ".join(f"{value:.3f}" for value in found))
    return table


def layer_aurocs(checkpoint: Path, cell: Cell, args: argparse.Namespace) -> list[float]:
    attack, seed = cell.attack, cell.victim.seed
    victim = load_trained(checkpoint)
    entry = grid_content(args)["attacks"][attack]["init_args"]
    paraphraser = FileParaphraser(**entry["paraphraser"]["init_args"])
    data = BackdoorDataModule(
        Source(str(args.data), labels=["negative", "positive"]),
        max_rows={"train": args.train_rows, **rows_of(args)},
        validation_parts=(0.3, 0.4, 0.3),
        seed=seed,
    )
    options = {"model": grid_content(args)["models"]["MiniLM"], "poison_rate": entry["poison_rate"]}
    data.attack = ATTACKS[attack](paraphraser=paraphraser, **options)
    defense = Dan(seed=seed)
    defense.learn(victim, data.reference_dataloader())

    @torch.no_grad()
    def distances(batches: Iterable[Batch]) -> Tensor:
        states = [token_states(victim.network, b["input_ids"], b["attention_mask"], "readout") for b in batches]
        return defense.distances(torch.cat(states, dim=1).double())

    clean, poisoned = (distances(loader) for loader in data.test_dataloader()[:2])
    return [auroc(*of_layer) for of_layer in zip(clean, poisoned, strict=True)]


def auroc(clean: Tensor, poisoned: Tensor) -> float:
    above = (poisoned[:, None] > clean).double() + (poisoned[:, None] == clean).double() / 2
    return float(above.mean())


def main() -> int:
    options = options_of("AUROC of defenses that read hidden states, over seeds.", seeds=[0, 1, 2])
    options.add_argument("--rows", type=int, help="validation rows, and test rows (default: all)")
    args = options.parse_args()
    args.data, args.output = args.data.resolve(), args.output.resolve()
    if status := run_grid(grid_content(args), args.output):
        return status
    console().print(cells_table(results_of(args.output)))
    console().print(layers_table(Grid(config_of(args.output), args.output), args))
    return 0


if __name__ == "__main__":
    sys.exit(main())
