"""What gradient-attention scoring and fine-tuning cost: time, memory and throughput over a reference.

Run ``python -m tests.measurements.cost --data sst2``, or name parts:
``python -m tests.measurements.cost short long --rounds 10``. A part that fails is told at the end; the others keep
their figures.
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import gc
import logging
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset
from lightning.pytorch import Callback, Trainer
from torch import Tensor
from transformers import DataCollatorWithPadding, PreTrainedModel, PrinterCallback, TrainerCallback, TrainingArguments

from lightning_backdoor.batch import Batch, batch_of_texts
from lightning_backdoor.data import BackdoorDataModule, Source
from lightning_backdoor.defenses.gradient_attention import GradientAttention
from lightning_backdoor.errors import reason
from lightning_backdoor.victim import TextClassifier
from tests.measurements.pairs import (
    BATCH_SIZE,
    MAX_LENGTH,
    SHORT_TEXTS,
    Comparison,
    Stopwatch,
    alternate,
    load_average,
    load_victim,
    paired_seconds,
    parse,
    parser,
    plain_forward,
    prediction,
    print_table,
    sorted_batches,
    test_texts,
)

SIDES = ("scoring", "reference")
TRAINING_ROWS = 20 * BATCH_SIZE


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


def long_batch(folder: Path, victim: TextClassifier) -> Batch:
    """Sentences strung together until every row is full."""
    texts = test_texts(folder, 40 + BATCH_SIZE)
    batch = batch_of_texts([" ".join(texts[i : i + 40]) for i in range(BATCH_SIZE)], victim.tokenizer, MAX_LENGTH)
    assert batch["attention_mask"].shape == (BATCH_SIZE, MAX_LENGTH)
    assert batch["attention_mask"].all()
    return batch


def short(args: argparse.Namespace) -> Iterator[Comparison]:
    victim, texts = load_victim(args.model), test_texts(args.data, SHORT_TEXTS)
    starts = range(0, len(texts), BATCH_SIZE)
    in_file_order = [
        batch_of_texts(texts[start : start + BATCH_SIZE], victim.tokenizer, MAX_LENGTH) for start in starts
    ]
    for order, batches in (("sorted by length", sorted_batches(texts, victim)), ("in file order", in_file_order)):
        pairs = paired_seconds(scoring(victim), plain_forward(victim), batches, args)
        yield Comparison(f"scoring / plain forward of transformers, SST-2, {order}", "s", "<= 2.1", pairs)
        pairs = paired_seconds(scoring(victim), prediction(victim), batches, args)
        yield Comparison(f"scoring / prediction of the victim, SST-2, {order}", "s", "", pairs)


def long(args: argparse.Namespace) -> Iterator[Comparison]:
    victim = load_victim(args.model)
    batch = long_batch(args.data, victim)
    pairs = paired_seconds(scoring(victim), forward_and_backward(victim), [batch] * 2, args)
    yield Comparison(f"scoring / forward and backward, {BATCH_SIZE} x {MAX_LENGTH} tokens", "s", "<= 1.2", pairs)


def memory(args: argparse.Namespace) -> Iterator[Comparison]:
    def of(side: str) -> Callable[[], float]:
        command = [sys.executable, "-m", "tests.measurements.cost", "--peak-of", side, "--model", args.model]
        command += ["--data", str(args.data), "--threads", str(args.threads)]
        return lambda: float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)

    pairs = list(alternate(of("scoring"), of("reference"), max(1, args.rounds // 2)))
    yield Comparison(f"memory that such a batch adds, {BATCH_SIZE} x {MAX_LENGTH} tokens", "MiB", "<= 1.3", pairs)


def added_memory(args: argparse.Namespace) -> float:
    """MiB by which one long batch raises the resident memory of this fresh process, at its peak.

    The kernel's high-water mark sees the buffers of MKL as well, unlike torch's own count. It is put back before the
    batch, since loading has a peak of its own that may be higher.
    """
    victim = load_victim(args.model)
    run = (scoring if args.peak_of == "scoring" else forward_and_backward)(victim)
    batch = long_batch(args.data, victim)
    run(batch_of_texts(test_texts(args.data, 2), victim.tokenizer, MAX_LENGTH))
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # memory that loading freed and malloc kept would hide what the batch takes
    before = resident_memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the high-water mark begins again
    run(batch)
    added = resident_memory("VmHWM") - before
    if added <= 0:
        raise RuntimeError("the batch added no memory: its peak could not be measured")
    return added


def resident_memory(name: str) -> float:
    """MiB of this process as Linux counts them: ``VmRSS`` now, ``VmHWM`` at the highest."""
    status = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    (kibibytes,) = (line.split()[1] for line in status if line.startswith(f"{name}:"))
    return int(kibibytes) / 1024


def fine_tuning(args: argparse.Namespace) -> Iterator[Comparison]:
    """Texts per second from the first step to the last: neither loading nor tokenising counts on either side."""
    with tempfile.TemporaryDirectory() as folder:
        data = BackdoorDataModule(
            Source(str(args.data)), batch_size=BATCH_SIZE, max_rows={"train": TRAINING_ROWS}, cache_dir=folder
        )

        def by_library() -> float:
            stopwatch, callback = Stopwatch(args.clock), Callback()
            callback.on_train_start, callback.on_train_end = stopwatch.start, stopwatch.stop  # type: ignore[method-assign]
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
            return TRAINING_ROWS / stopwatch.seconds

        def by_transformers() -> float:
            stopwatch, callback = Stopwatch(args.clock), TrainerCallback()
            callback.on_train_begin, callback.on_train_end = stopwatch.start, stopwatch.stop
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
                    max_grad_norm=0.0,  # the library does not clip either
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
            return TRAINING_ROWS / stopwatch.seconds

        pairs = list(alternate(by_library, by_transformers, args.rounds))
    yield Comparison("fine-tuning / transformers.Trainer, grouped by length", "texts/s", ">= 1.2", pairs)


PARTS = {"short": short, "long": long, "memory": memory, "fine-tuning": fine_tuning}


def main() -> int:
    options = parser("What scoring and fine-tuning cost, as ratios of paired measurements.", rounds=6)
    options.add_argument("parts", nargs="*", help=f"{', '.join(PARTS)}; all by default")
    options.add_argument("--peak-of", choices=SIDES, help=argparse.SUPPRESS)  # how the memory part calls itself
    args = parse(options)
    if unknown := set(args.parts) - set(PARTS):
        options.error(f"there is no part {', '.join(sorted(unknown))}; give {', '.join(PARTS)}")
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()
    if args.peak_of:
        print(added_memory(args))
        return 0
    load_before = load_average()
    comparisons: list[Comparison] = []
    failures: list[str] = []
    for name, measure in PARTS.items():
        if name in (args.parts or PARTS):
            try:
                comparisons += measure(args)
            except Exception as error:
                failures.append(f"{name}: {type(error).__name__}: {reason(error)}")
    if comparisons:
        print_table(comparisons, args, load_before)
    for failure in failures:
        print(f"failed: {failure}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
