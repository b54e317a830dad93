"""What a training step under MuScleLoRA costs over a step of plain LoRA on the same batches.

Run ``python -m tests.measurements.muscle_lora --data sst2``.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import warnings
from collections.abc import Iterator

from lightning.pytorch import Callback, Trainer, seed_everything

from lightning_backdoor.callbacks import MuScleLoRA
from lightning_backdoor.data import BackdoorDataModule, Source
from lightning_backdoor.victim import TextClassifier
from tests.measurements.pairs import (
    BATCH_SIZE,
    Comparison,
    Pair,
    Stopwatch,
    alternate,
    load_average,
    parse,
    parser,
    print_table,
)

STEPS = 20
#: tokens that nearly every row has, so that all batches have one shape.
SAME_LENGTH = 12


def seconds_per_step(data: BackdoorDataModule, victim: TextClassifier, clock: str, defense: MuScleLoRA) -> float:
    seed_everything(0, verbose=False)
    stopwatch, callback = Stopwatch(clock), Callback()
    callback.on_train_start, callback.on_train_end = stopwatch.start, stopwatch.stop  # type: ignore[method-assign]
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        limit_val_batches=0,
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[defense, callback],
    )
    trainer.fit(victim, datamodule=data)
    return stopwatch.seconds / STEPS


def step(args: argparse.Namespace) -> Iterator[Comparison]:
    with tempfile.TemporaryDirectory() as folder:
        rows = {"train": STEPS * BATCH_SIZE}
        data = BackdoorDataModule(Source(str(args.data)), batch_size=BATCH_SIZE, max_rows=rows, cache_dir=folder)

        def pairs(max_length: int) -> list[Pair]:
            def seconds(whole: bool) -> float:
                victim = TextClassifier(args.model, max_length=max_length)
                return seconds_per_step(data, victim, args.clock, MuScleLoRA(multi_scale=whole, alignment=whole))

            return list(alternate(lambda: seconds(whole=True), lambda: seconds(whole=False), args.rounds))

        yield Comparison("MuScleLoRA step / LoRA step, batches of similar length", "s", "<= 2.1", pairs(128))
        yield Comparison(f"the same, all rows of {SAME_LENGTH} tokens", "s", "<= 2.1", pairs(SAME_LENGTH))


PARTS = {"step": step}


def main() -> None:
    args = parse(parser("What a MuScleLoRA step costs over a plain LoRA step.", rounds=6))
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    load_before = load_average()
    print_table([comparison for part in PARTS.values() for comparison in part(args)], args, load_before)


if __name__ == "__main__":
    main()
