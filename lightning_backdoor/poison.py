"""``poison``: writes the poisoned splits of a data set, with flags and trigger spans."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_backdoor.errors import InputError

if TYPE_CHECKING:
    from lightning_backdoor.data.poisoning import Row


def parser() -> argparse.ArgumentParser:
    """Options of ``poison``; the rest goes to the attack and the data."""
    options = argparse.ArgumentParser(
        "lightning-backdoor poison",
        description="Writes train, validation and test as parquet and csv: text, label, original_label, poisoned,"
        " spans, index. Training rows are partly poisoned; evaluation splits hold the clean rows, then a poisoned copy"
        " of each that is not of the target label.",
        epilog="Attack and data are given as to fit: --config FILE (repeatable), --model CLASS, --model.poison_rate"
        " 0.2, --data CLASS, --data.source.path reviews.csv, --seed_everything 1.",
    )
    options.add_argument("--output", required=True, help="the folder to write, which must not exist")
    return options


def main(args: list[str]) -> int:
    """Runs ``poison``; returns the exit status.

    Raises:
        InputError: bad input; nothing is written.
    """
    options, rest = parser().parse_known_args(args)
    output = Path(options.output)
    if output.exists():
        raise InputError(f"output: {output} exists; name another folder")
    splits = _poison(rest)
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=output.parent, prefix=".partial-"))
    for name, rows in splits.items():
        _write(partial / name, rows)
        poisoned = sum(row["poisoned"] for row in rows)
        sys.stdout.write(f"{name}: {len(rows)} rows, {poisoned} of them poisoned\n")
    try:
        partial.chmod(0o755)
        partial.rename(output)
    except OSError as error:
        shutil.rmtree(partial)
        raise InputError(f"output: {output} cannot be written: {error}") from None
    sys.stdout.write(f"written to: {output}\n")
    return 0


def _poison(args: list[str]) -> dict[str, list[Row]]:
    from jsonargparse import ArgumentParser
    from jsonargparse._actions import ActionConfigFile

    from lightning_backdoor.attacks import BackdoorAttack
    from lightning_backdoor.data import BackdoorDataModule

    options = ArgumentParser("lightning-backdoor poison")
    options.add_argument("-c", "--config", action=ActionConfigFile)
    options.add_argument("--seed_everything", type=int, default=0)
    for name in ("trainer", "run_dir", "ckpt_path", "weights_only"):  # so that the config of a run can be given
        options.add_argument(f"--{name}", type=Any, default=None)
    options.add_subclass_arguments(BackdoorAttack, "model", required=True)
    options.add_subclass_arguments(BackdoorDataModule, "data", required=True)
    options.link_arguments("seed_everything", "data.init_args.seed")
    made = options.instantiate_classes(options.parse_args(args))
    made.data.attack = made.model
    splits = made.data.poisoned_splits()
    evaluation = {name: splits.clean[name] + splits.poisoned[name] for name in ("validation", "test")}
    return {"train": splits.train, **evaluation}


def _write(path: Path, rows: list[Row]) -> None:
    from datasets import Dataset

    table = Dataset.from_list([{**row, "spans": [list(span) for span in row["spans"]]} for row in rows])
    table.to_parquet(str(path.with_suffix(".parquet")))
    flat = Dataset.from_list([{**row, "spans": json.dumps(row["spans"])} for row in rows])
    flat.to_csv(str(path.with_suffix(".csv")))
