"""What STRIP costs over as many plain forwards as it makes copies.

Run ``python -m tests.measurements.strip --data sst2``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import transformers

from lightning_backdoor.batch import Batch
from lightning_backdoor.defenses.strip import Strip
from lightning_backdoor.victim import TextClassifier
from tests.measurements.pairs import (
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


def learned(victim: TextClassifier, folder: Path) -> Strip:
    """STRIP that has learned the words of other texts than the timed ones."""
    defense = Strip(seed=0)
    defense.learn(victim, sorted_batches(test_texts(folder, 2 * SHORT_TEXTS)[SHORT_TEXTS:], victim))
    return defense


def repeated(forward: Callable[[Batch], Any], times: int) -> Callable[[Batch], Any]:
    """The same forward several times."""

    def run(batch: Batch) -> None:
        for _ in range(times):
            forward(batch)

    return run


def main() -> None:
    args = parse(parser("What STRIP costs over as many plain forwards as it makes copies.", rounds=4))
    transformers.utils.logging.disable_progress_bar()
    victim = load_victim(args.model)
    defense = learned(victim, args.data)
    batches = sorted_batches(test_texts(args.data, SHORT_TEXTS), victim)
    load_before = load_average()
    plain = repeated(plain_forward(victim), defense.copies)
    pairs = paired_seconds(lambda batch: defense.score(victim, batch), plain, batches, args)
    title = f"STRIP / {defense.copies} plain forwards, SST-2, sorted by length"
    print_table([Comparison(title, "s", "<= 1.2", pairs)], args, load_before)


if __name__ == "__main__":
    main()
