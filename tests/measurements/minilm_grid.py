"""The grid ``configs/benchmark/minilm_sst2.yaml``, cut to some attacks, for scripts that measure more than it does."""

from __future__ import annotations

import argparse
import copy
import csv
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from lightning_backdoor.cli import main as command
from lightning_backdoor.files.presets import preset_path

GRID = preset_path("configs/benchmark/minilm_sst2.yaml")


def options_of(description: str, seeds: list[int]) -> argparse.ArgumentParser:
    """The options that such scripts share."""
    options = argparse.ArgumentParser(description=description)
    options.add_argument("--data", type=Path, required=True, help="folder with SST-2 and its published paraphrases")
    options.add_argument("--output", type=Path, required=True, help="folder of the grid")
    options.add_argument("--model", help="the victim's model (default: MiniLM)")
    options.add_argument("--seeds", type=int, nargs="+", default=seeds)
    options.add_argument("--epochs", type=int, default=3)
    options.add_argument("--train-rows", type=int, default=2500)
    return options


def cut_grid(args: argparse.Namespace, attacks: Iterable[str], rows: dict[str, int]) -> dict[str, Any]:
    """The content of the grid, cut to some attacks and without defenses.

    Args:
        args: values of the options above.
        attacks: names of the attacks in the grid; each becomes a class path with arguments.
        rows: rows of splits beside training, as for the data module's ``max_rows``.
    """
    whole = yaml.safe_load(GRID.read_text(encoding="utf-8"))
    content = {key: copy.deepcopy(whole[key]) for key in ("base", "datasets", "test")}
    content["base"]["trainer"]["max_epochs"] = args.epochs
    content["base"]["data"]["init_args"]["max_rows"] = {"train": args.train_rows, **rows}
    content["datasets"]["SST-2"]["data"]["init_args"]["source"]["path"] = str(args.data)
    content["models"] = {"MiniLM": args.model or whole["models"]["MiniLM"]}
    content["attacks"] = {name: _attack(whole["attacks"][name], args.data) for name in attacks}
    return {**content, "seeds": args.seeds}


def _attack(entry: Any, data: Path) -> dict[str, Any]:
    if isinstance(entry, str):
        entry = yaml.safe_load((GRID.parent / entry).read_text(encoding="utf-8"))["model"]
    result: dict[str, Any] = copy.deepcopy(entry)
    if "paraphraser" in result.get("init_args", {}):
        paraphraser = result["init_args"]["paraphraser"]["init_args"]
        paraphraser["path"] = str(data / Path(paraphraser["path"]).name)
    return result


def run_grid(content: dict[str, Any], output: Path) -> int:
    """Writes a grid beside its folder and runs it, or goes on with it; returns the exit status of ``benchmark``."""
    output.mkdir(parents=True, exist_ok=True)
    config_of(output).write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return command(["benchmark", "--config", str(config_of(output)), "--output", str(output)])


def config_of(output: Path) -> Path:
    """The file of the grid of a folder."""
    return output.with_suffix(".yaml")


def results_of(output: Path) -> list[dict[str, str]]:
    """The rows of ``results.csv`` of cells that did not fail."""
    with (output / "results.csv").open(encoding="utf-8", newline="") as file:
        return [line for line in csv.DictReader(file) if not line["error"]]


def console() -> Console:
    """A console wide enough for tables, also where the output is a file."""
    return Console(width=None if sys.stdout.isatty() else 150)
