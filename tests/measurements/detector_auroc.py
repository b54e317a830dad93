"""How well defenses that read hidden states find syntactic and style poison, over seeds, and in which layers.

Run ``python -m tests.measurements.detector_auroc --data sst2 --output runs/detectors``; the same command continues an
interrupted run, and prints the tables again. It trains MiniLM as ``configs/benchmark/minilm_sst2.yaml`` does, under
its two attacks by published paraphrases, and tests the detectors in one grid. The second table tells where seeds
differ: the AUROC of the distance to the nearest class mean (DAN) in each layer alone.
"""

from __future__ import annotations

import argparse
import copy
import csv
import statistics
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console
from rich.table import Table
from torch import Tensor

from lightning_backdoor.attacks import BackdoorAttack, StyleTransfer, Syntactic
from lightning_backdoor.batch import Batch
from lightning_backdoor.benchmark.grid import Cell, Grid
from lightning_backdoor.benchmark.running.journal import Journal
from lightning_backdoor.benchmark.running.products import NEEDED, Products
from lightning_backdoor.cli import main as command
from lightning_backdoor.data import BackdoorDataModule, Source
from lightning_backdoor.defenses import Dan
from lightning_backdoor.defenses.hidden_states import token_states
from lightning_backdoor.files.presets import preset_path
from lightning_backdoor.language import FileParaphraser
from lightning_backdoor.victim import load_trained

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
    whole = yaml.safe_load(preset_path("configs/benchmark/minilm_sst2.yaml").read_text(encoding="utf-8"))
    content = {key: copy.deepcopy(whole[key]) for key in ("base", "datasets", "test")}
    content["base"]["trainer"]["max_epochs"] = args.epochs
    content["base"]["data"]["init_args"]["max_rows"] = max_rows(args)
    content["datasets"]["SST-2"]["data"]["init_args"]["source"]["path"] = str(args.data)
    content["models"] = {"MiniLM": args.model or whole["models"]["MiniLM"]}
    content["attacks"] = {name: whole["attacks"][name] for name in ATTACKS}
    for attack in content["attacks"].values():
        paraphraser = attack["init_args"]["paraphraser"]["init_args"]
        paraphraser["path"] = str(args.data / Path(paraphraser["path"]).name)
    return {**content, "defenses": {name: {"inference": of} for name, of in DEFENSES.items()}, "seeds": args.seeds}


def max_rows(args: argparse.Namespace) -> dict[str, int]:
    return {"train": args.train_rows} | ({"validation": args.rows, "test": args.rows} if args.rows else {})


def cells_table(lines: Sequence[dict[str, str]]) -> Table:
    """AUROC against all clean rows and against those predicted as the target, by seed and with their spread."""
    table = Table(title="AUROC (against clean rows predicted as the target), mean ± standard deviation over seeds")
    for heading in ("attack", "defense", "seed by seed", "AUROC", "against target", "TPR", "FPR"):
        table.add_column(heading)
    for attack in ATTACKS:
        own = [line for line in lines if line["attack"] == attack and not line["error"]]
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
        max_rows=max_rows(args),
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
    options = argparse.ArgumentParser(description="AUROC of defenses that read hidden states, over seeds.")
    options.add_argument("--data", type=Path, required=True, help="folder with SST-2 and its published paraphrases")
    options.add_argument("--output", type=Path, required=True, help="folder of the grid")
    options.add_argument("--model", help="the victim's model (default: MiniLM)")
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options.add_argument("--epochs", type=int, default=3)
    options.add_argument("--train-rows", type=int, default=2500)
    options.add_argument("--rows", type=int, help="validation rows, and test rows (default: all)")
    args = options.parse_args()
    args.data, args.output = args.data.resolve(), args.output.resolve()
    args.output.mkdir(parents=True, exist_ok=True)
    config = args.output.with_suffix(".yaml")
    config.write_text(yaml.safe_dump(grid_content(args), sort_keys=False), encoding="utf-8")
    status = command(["benchmark", "--config", str(config), "--output", str(args.output)])
    if status:
        return status
    with (args.output / "results.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    console = Console(width=None if sys.stdout.isatty() else 150)
    console.print(cells_table(lines))
    console.print(layers_table(Grid(config, args.output), args))
    return 0


if __name__ == "__main__":
    sys.exit(main())
