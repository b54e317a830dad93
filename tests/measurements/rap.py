"""What RAP costs over a plain forward of the network, and over a prediction, once its word is tuned.

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
    prediction,
    print_table,
    sorted_batches,
    test_texts,
)


def main() -> None:
    args = parse(parser("What RAP costs over a plain forward and over a prediction.", rounds=10))
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
    references = (("plain forward", plain_forward(victim), "<= 2.1"), ("prediction", prediction(victim), ""))
    comparisons = [
        Comparison(
            f"RAP / {name}, SST-2, sorted by length",
            "s",
            target,
            paired_seconds(lambda batch: defense.score(victim, batch), reference, batches, args),
        )
        for name, reference, target in references
    ]
    print_table(comparisons, args, load_before)


if __name__ == "__main__":
    main()
