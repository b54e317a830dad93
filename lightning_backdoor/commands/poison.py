"""``poison``: writes the poisoned splits of a data set, with flags and trigger spans."""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lightning_backdoor.errors import InputError

if TYPE_CHECKING:
    from lightning_backdoor.data import BackdoorDataModule
    from lightning_backdoor.data.poisoning import PoisonedSplits, Row

#: what the config of a run says beside data, attack and seed; it is read and left aside.
OF_A_RUN = ("trainer", "run_dir", "ckpt_path", "weights_only", "verbose", "return_predictions")


def parser() -> argparse.ArgumentParser:
    """Options of ``poison``; the rest goes to the attack and the data."""
    options = argparse.ArgumentParser(
        "lightning-backdoor poison",
        description="Writes train, validation and test as parquet and csv: text, spans, label, original_label,"
        " poisoned, index. Training rows are partly poisoned; evaluation splits hold the clean rows, then a poisoned"
        " copy of each that is not of the target label.",
        epilog="Attack and data are given as to fit: --config FILE (repeatable), --model CLASS, --model.poison_rate"
        " 0.2, --data CLASS, --data.source.path reviews.csv, --seed_everything 1.",
    )
    options.add_argument("--output", required=True, help="the folder to write, which must not exist")
    options.add_argument(
        "--stealth_rows",
        type=int,
        default=200,
        help="poisoned test rows on which perplexity increase, similarity and word edits are measured (default: 200);"
        " 0 measures nothing",
    )
    options.add_argument("--language_model", help="whose perplexity that is (default: SmolLM2)")
    options.add_argument("--sentence_encoder", help="whose similarity that is (default: all-MiniLM-L6-v2)")
    return options


def main(args: list[str]) -> int:
    """Runs ``poison``; returns the exit status.

    Raises:
        InputError: bad input; nothing is written.
    """
    options, rest = parser().parse_known_args(args)
    output = Path(options.output)
    if options.stealth_rows < 0:
        raise InputError("stealth_rows", f"{options.stealth_rows} is no number of rows", "give 0 or more")
    if output.exists():
        raise InputError("output", f"{output} exists", "name another folder")
    data = _data(rest)
    splits = data.poisoned_splits()
    rows = {name: splits.clean[name] + splits.poisoned[name] for name in ("validation", "test")}
    rows = {"train": splits.train, **rows}
    stealth = _stealth(splits, options, data) if options.stealth_rows else None
    partial = output.with_name(f".partial-{uuid.uuid4().hex}")
    try:
        partial.mkdir(parents=True)
        for name in rows:
            _write(partial / name, rows[name], data.label_names)
        if stealth:
            (partial / "stealth.json").write_text(stealth.json, encoding="utf-8")
        partial.rename(output)
    except OSError as error:
        raise InputError("output", f"{output} cannot be written ({error})", "name another folder") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    for name in rows:
        sys.stdout.write(f"{name}: {len(rows[name])} rows, {_poisoned(rows[name], name, data)}\n")
    sys.stdout.write(f"{stealth.lines if stealth else ''}written to: {output}\n")
    return 0


def _poisoned(rows: list[Row], name: str, data: BackdoorDataModule) -> str:
    poisoned = sum(row["poisoned"] for row in rows)
    told = f"{poisoned} of them poisoned"
    if name == "train" or data.attack is None:
        return told
    left_out = sum(not row["poisoned"] and row["label"] != data.attack.target_label for row in rows) - poisoned
    return told + (f"; {left_out} rows cannot be poisoned and have no copy" if left_out else "")


class _Stealth(NamedTuple):
    """What was measured, for the file and for the eye."""

    json: str
    lines: str


def _stealth(splits: PoisonedSplits, options: argparse.Namespace, data: BackdoorDataModule) -> _Stealth:
    from lightning_backdoor.commands.stealth import as_json, as_lines, stealth_of

    models = {name: value for name in ("language_model", "sentence_encoder") if (value := getattr(options, name))}
    poisoned = splits.poisoned["test"]
    found = stealth_of(splits.clean["test"], poisoned, options.stealth_rows, data.seed, **models, cache_dir=data.cache)
    heading = f"stealth of {found['rows']} poisoned test rows, mean ± standard deviation"
    return _Stealth(as_json(found), f"{heading}:\n{as_lines(found)}")


def without_run_options(args: list[str]) -> list[str]:
    """The options of a run that say something of attack, data and seed.

    >>> without_run_options(["--config", "a.yaml", "--trainer.max_epochs", "3", "--run_dir=one", "--model", "My"])
    ['--config', 'a.yaml', '--model', 'My']
    """
    kept: list[str] = []
    left_out = False
    for arg in args:
        if arg.startswith("--"):
            name, has_value, _ = arg.partition("=")
            left_out = name.removeprefix("--").rstrip("+").split(".")[0] in OF_A_RUN
            if not left_out:
                kept.append(arg)
            left_out = left_out and not has_value
        elif not left_out:
            kept.append(arg)
    return kept


def _data(args: list[str]) -> BackdoorDataModule:
    from jsonargparse import ArgumentParser

    from lightning_backdoor.attacks import BackdoorAttack
    from lightning_backdoor.data import BackdoorDataModule

    options = ArgumentParser("lightning-backdoor poison")
    options.add_argument("-c", "--config", action="config")
    options.add_argument("--seed_everything", type=int, default=0)
    for name in OF_A_RUN:
        options.add_argument(f"--{name}", type=Any, default=None)
    options.add_subclass_arguments(BackdoorAttack, "model", required=True)
    options.add_subclass_arguments(BackdoorDataModule, "data", required=True)
    options.link_arguments("seed_everything", "data.init_args.seed")
    made = options.instantiate_classes(options.parse_args(without_run_options(args)))
    data: BackdoorDataModule = made.data
    data.attack = made.model
    return data


def _write(path: Path, rows: list[Row], labels: list[str]) -> None:
    from datasets import ClassLabel, Dataset, Features, List, Value

    # declared, since a trigger that lies in no place leaves nothing to tell the type of its spans from
    features = Features(
        {
            "text": Value("string"),
            "spans": List(List(Value("int64"))),
            "label": ClassLabel(names=labels),
            "original_label": ClassLabel(names=labels),
            "poisoned": Value("bool"),
            "index": Value("int64"),
        }
    )
    table = Dataset.from_list([{**row, "spans": [list(span) for span in row["spans"]]} for row in rows], features)
    table.to_parquet(str(path.with_suffix(".parquet")))
    with path.with_suffix(".csv").open("w", encoding="utf-8", newline="") as file:
        flat = csv.DictWriter(file, list(features))
        flat.writeheader()
        flat.writerows({**row, "spans": json.dumps(row["spans"])} for row in rows)
