"""What RAP costs over the plain forward, once its word is tuned.

Run ``python -m tests.measurements.rap --data sst2``.
"""

from __future__ import annotations

import warnings

import torch
import transformers

from lightning_backdoor.defenses.rap import Rap
from tests.measurements.pairs import (
    BATCH_SIZE,
    SHORT_TEXTS,
    Comparison,
    load_average,
    load_victim,
    paired_seconds,
    parse,
    parser,
    plain_forward,
    print_table,
    sorted_batches,
    test_texts,
)


def main() -> None:
    args = parse(parser("What RAP costs over the plain forward.", rounds=10))
    warnings.filterwarnings("ignore")
    transformers.utils.logging.disable_progress_bar()
    victim = load_victim(args.model)
    defense = Rap(epochs=1, seed=0)
    clean = sorted_batches(test_texts(args.data, SHORT_TEXTS + 2 * BATCH_SIZE)[SHORT_TEXTS:], victim)
    for batch in clean:  # a score costs the same whatever the word is tuned on
        batch["original_label"] = torch.arange(len(batch["text"])) % 2
    defense.learn(victim, clean)
    batches = sorted_batches(test_texts(args.data, SHORT_TEXTS), victim)
    load_before = load_average()
    pairs = paired_seconds(lambda batch: defense.score(victim, batch), plain_forward(victim), batches, args)
    print_table([Comparison("RAP / plain forward, SST-2, sorted by length", "s", "<= 2.1", pairs)], args, load_before)


if __name__ == "__main__":
    main()
