"""The operations whose growth is measured: each prepares its input, and returns what is timed."""

from __future__ import annotations

import csv
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from lightning.pytorch import Trainer
from transformers import BertConfig, BertForSequenceClassification

from lightning_backdoor.attacks import BackdoorAttack, BadNets, InsertSent
from lightning_backdoor.benchmark.report.page import write_page
from lightning_backdoor.benchmark.statistics import auroc_interval
from lightning_backdoor.cli import main
from lightning_backdoor.data import BackdoorDataModule, Source
from lightning_backdoor.data.batching import TokenisedRows, loader
from lightning_backdoor.data.poisoning import Splits, poison_splits, poison_splits_cached
from lightning_backdoor.data.rows import Rows
from lightning_backdoor.data.source import load_source
from lightning_backdoor.data.splitting import stratified_parts
from lightning_backdoor.language.text_cache import TextCache
from tests.benchmark.example import example
from tests.measurements.loading import write
from tests.support.tiny import tokenizer_of

WORDS = ("the", "a", "film", "story", "good", "bad", "actors", "music", "is", "with", "plot", "scene", "and", "never")
LONGEST = 600


class Size(NamedTuple):
    """The size of a measurement.

    Attributes:
        rows: rows of the source, or texts.
        length: words per text, each about one token.
        classes: number of classes.
        defenses: number of defenses of a grid.
        processes: processes that share the work.
    """

    rows: int = 10_000
    length: int = 16
    classes: int = 2
    defenses: int = 2
    processes: int = 1


#: prepares what an operation of a size needs, in an empty folder that is the working directory; returns the operation.
Prepare = Callable[[Size], Callable[[], object]]


def texts(size: Size) -> Iterator[tuple[str, int]]:
    """Distinct texts of a length, with their class."""
    rng = random.Random(0)
    for i in range(size.rows):
        yield f"{i} {' '.join(rng.choices(WORDS, k=size.length - 1))}", i % size.classes


def source(size: Size, ending: str = "csv") -> Path:
    """A file of such texts."""
    path = Path(f"rows.{ending}")
    if ending == "parquet":
        import pyarrow as pa  # type: ignore[import-untyped]
        from pyarrow.parquet import write_table  # type: ignore[import-untyped]

        columns = zip(*texts(size), strict=True)
        write_table(pa.table(dict(zip(("text", "label"), map(list, columns), strict=True))), path)
        return path
    with path.open("w", encoding="utf-8", newline="") as file:
        if ending == "jsonl":
            file.writelines(json.dumps({"text": text, "label": label}) + "\n" for text, label in texts(size))
        else:
            csv.writer(file, delimiter="\t" if ending == "tsv" else ",").writerows([("text", "label"), *texts(size)])
    return path


def splits(size: Size) -> Splits:
    """Rows for training, validation and test: 7, 1 and 2 of 10."""
    rows = Rows.clean(*map(list, zip(*texts(size), strict=True)))
    places = np.arange(len(rows)) // size.classes % 10
    return {
        "train": rows.where(places < 7),
        "validation": rows.where(places == 7),
        "test": rows.where(places > 7),
    }


def model(size: Size) -> str:
    """A tiny classifier that reads texts of any length that is measured."""
    tokenizer = tokenizer_of("bert")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = BertConfig(vocab_size=len(tokenizer), num_labels=size.classes, max_position_embeddings=LONGEST, **sizes)
    torch.manual_seed(0)
    BertForSequenceClassification(config).save_pretrained("model")
    tokenizer.save_pretrained("model")
    return "model"


def names(size: Size) -> list[str]:
    return [f"class {i:03}" for i in range(size.classes)]


def reading(ending: str) -> Prepare:
    def prepare(size: Size) -> Callable[[], object]:
        given = Source(str(source(size, ending)))
        return lambda: load_source(given)

    return prepare


def splitting(size: Size) -> Callable[[], object]:
    rows = Rows.clean(*map(list, zip(*texts(size), strict=True)))
    return lambda: stratified_parts(rows.label, [0.7, 0.1, 0.2], "seed", rows.text)


def poisoning(make: Callable[..., BackdoorAttack], policy: str, rate: float = 0.1) -> Prepare:
    def prepare(size: Size) -> Callable[[], object]:
        rows = splits(size)
        # a clean label of many classes has few rows
        attack = make(label_policy=policy, poison_rate=min(rate, 0.5 / size.classes))
        return lambda: poison_splits(rows, attack, 0, names(size))

    return prepare


def cached_poison(size: Size) -> Callable[[], object]:
    rows, attack = splits(size), BadNets()
    poison_splits_cached(rows, attack, 0, names(size), Path("cache"))
    return lambda: poison_splits_cached(rows, attack, 0, names(size), Path("cache"))


def poison_command(size: Size) -> Callable[[], object]:
    args = ["poison", "--model", "BadNets", "--model.model", model(size), "--model.max_length", str(LONGEST)]
    args += ["--data", "BackdoorDataModule", "--data.source.path", str(source(size))]
    return lambda: command([*args, "--output", "out", "--stealth_rows", "0"])


def poison_process(size: Size) -> Callable[[], object]:
    """The command as a user starts it, on the reviews of ``tests.measurements.loading``."""
    write(Path("reviews.csv"), size.rows)
    line = [sys.executable, "-m", "lightning_backdoor", "poison", "--model", "BadNets", "--model.model", model(size)]
    line += ["--data", "BackdoorDataModule", "--data.source.path", "reviews.csv"]
    line += ["--output", "out", "--stealth_rows", "0"]
    return lambda: subprocess.run(line, check=True, stdout=subprocess.DEVNULL)


def tokenising(size: Size) -> Callable[[], object]:
    rows = splits(size)["train"]
    tokenizer = tokenizer_of("bert")
    return lambda: TokenisedRows(rows, tokenizer, LONGEST)


def batches(size: Size) -> Callable[[], object]:
    rows = TokenisedRows(splits(size)["train"], tokenizer_of("bert"), LONGEST)
    batches = loader(rows, 32, rank=0, world_size=1, shuffle=True, seed=0, workers=0)
    return lambda: sum(len(batch["text"]) for batch in batches)


def run(stage: str) -> Prepare:
    """``fit`` or ``test`` of a tiny victim."""

    def prepare(size: Size) -> Callable[[], object]:
        victim = BadNets(model=model(size), max_length=LONGEST, poison_rate=0.1, labels=names(size))
        data = BackdoorDataModule(Source(str(source(size)), labels=names(size)), cache_dir="cache")
        data.attack = victim
        data.poisoned_splits()
        data.attack = None
        quiet: dict[str, Any] = dict.fromkeys(
            ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
        )
        trainer = Trainer(accelerator="cpu", max_epochs=1, limit_val_batches=0, default_root_dir=".", **quiet)
        options = {"verbose": False} if stage == "test" else {}
        return lambda: getattr(trainer, stage)(victim, datamodule=data, **options)

    return prepare


def run_in_processes(stage: str) -> Prepare:
    """The command ``fit`` or ``test`` in processes on gloo, one thread each."""

    def prepare(size: Size) -> Callable[[], object]:
        args = ["--model", "BadNets", "--model.model", model(size), "--model.max_length", str(LONGEST)]
        args += [
            "--data",
            "BackdoorDataModule",
            "--data.source.path",
            str(source(size)),
            "--data.cache_dir",
            "cache",
            "--trainer.logger",
            "false",
        ]
        args += ["--trainer.accelerator", "cpu", "--trainer.max_epochs", "1", "--trainer.devices", str(size.processes)]
        args += ["--trainer.enable_progress_bar", "false"]
        args += ["--trainer.strategy", "ddp"] if size.processes > 1 else []
        where = ["--run_dir", "run"] if stage == "fit" else []
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "LIGHTNING_BACKDOOR_CACHE": "cache"}
        line = [sys.executable, "-m", "lightning_backdoor", stage, *args, *where]
        return lambda: subprocess.run(line, check=True, env=environment, stdout=subprocess.DEVNULL)

    return prepare


def scan(size: Size) -> Callable[[], object]:
    lines = [text for text, _ in texts(size)]
    Path("texts.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    Path("clean.txt").write_text("\n".join(lines[:200]) + "\n", encoding="utf-8")
    args = ["scan", "--model", model(size), "--calibration", "clean.txt", "--input", "texts.txt"]
    return lambda: command([*args, "--output", "found.jsonl"])


def results(size: Size) -> Callable[[], object]:
    """From ``outcomes.csv`` of each cell to ``report.html``: intervals, comparisons, figures."""
    shifts = {f"defense {i}": 0.5 + i / 4 for i in range(size.defenses)}
    rows = size.rows * 2 // 3
    made = example(
        Path("cells"), attacks=("badnets",), defenses={"none": None, **shifts}, n_clean=rows, n_poisoned=rows // 2
    )

    def write_report() -> None:
        collected = made.results
        assert collected.comparisons
        write_page(Path(), "grid", collected, "", "")

    return write_report


def auroc(size: Size) -> Callable[[], object]:
    """The AUROC and its bootstrap interval."""
    rng = np.random.default_rng(0)
    clean, poisoned = rng.normal(size=size.rows * 2 // 3), rng.normal(1, size=size.rows // 3)
    return lambda: auroc_interval(clean, poisoned)


def text_cache(size: Size) -> Callable[[], object]:
    cache, given = TextCache("growth", "cache"), [text for text, _ in texts(size)]

    def write_and_read() -> None:
        cache.put({text: text.encode() for text in given})
        assert all(TextCache("growth", "cache").get(given))

    return write_and_read


def planning(size: Size) -> Callable[[], object]:
    """``benchmark --dry-run`` of as many cells as there are rows, half of them under a defense."""
    defense = {"inference": {"class_path": "lightning_backdoor.defenses.Strip"}}
    grid = {
        "datasets": {"rows": {"data": {"init_args": {"source": {"path": str(source(Size(100)).resolve())}}}}},
        "models": {"tiny": model(size)},
        "attacks": {"BadNets": {"class_path": "lightning_backdoor.attacks.BadNets"}},
        "defenses": {"none": None} | {f"strip {i}": with_seed(defense, i) for i in range(size.defenses - 1)},
        "seeds": list(range(size.rows // size.defenses)),
    }
    Path("grid.yaml").write_text(yaml.safe_dump(grid, sort_keys=False), encoding="utf-8")
    return lambda: command(["benchmark", "--config", "grid.yaml", "--output", "out", "--dry-run"])


def with_seed(defense: dict[str, Any], number: int) -> dict[str, Any]:
    return {"inference": {**defense["inference"], "init_args": {"copies": number + 2}}}


def command(args: list[str]) -> None:
    """Runs a command in this process; what it prints is not shown.

    Raises:
        RuntimeError: it fails.
    """
    with redirect_stdout(StringIO()) as printed:
        status = main(args)
    if status:
        raise RuntimeError(f"{args[0]} ended with {status}: {printed.getvalue()[-500:]}")


@contextmanager
def inside(folder: Path) -> Iterator[None]:
    """Makes a folder the working directory."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


OPERATIONS: dict[str, Prepare] = {
    **{f"read {ending}": reading(ending) for ending in ("csv", "tsv", "jsonl", "parquet")},
    "split": splitting,
    **{f"poison BadNets, {policy}": poisoning(BadNets, policy) for policy in ("dirty", "clean", "mixed")},
    "poison InsertSent, dirty": poisoning(InsertSent, "dirty"),
    "poison, from the cache": cached_poison,
    "poison (command)": poison_command,
    "poison (command, start-up included)": poison_process,
    "tokenise": tokenising,
    "form batches": batches,
    "fit": run("fit"),
    "test": run("test"),
    "fit (command)": run_in_processes("fit"),
    "scan": scan,
    "results and report": results,
    "AUROC with interval": auroc,
    "text cache": text_cache,
    "plan a grid": planning,
}
