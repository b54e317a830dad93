"""What second opinion, and defenses that read hidden states, cost over a plain forward.

Run ``python -m tests.measurements.detectors --data sst2``, or name defenses: ``python -m tests.measurements.detectors
DAN LCF``. Each defense is measured alone; in one evaluation, or one grid, all of them share the victim's forward, in
which hidden states are computed anyway. Beside second opinion stands gradient attention.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial

import torch
import transformers

from lightning_backdoor.defenses import LCF, BadActs, Dan, Defense, Dup, GradientAttention, SecondOpinion
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

#: how each defense is made, and the forwards per text that it may cost. BadActs optimises its bounds when it learns.
DEFENSES: dict[str, tuple[Callable[[], Defense], str]] = {
    "DAN": (Dan, "<= 1.1"),
    "BadActs": (lambda: BadActs(epochs=0), "<= 1.1"),
    "LCF": (LCF, "<= 1.05"),
    "DUP": (Dup, ""),
    # not differences to the base, from which an untrained victim does not differ
    "second opinion": (lambda: SecondOpinion(base_known=False), "<= 2.2"),
    "gradient attention": (GradientAttention, ""),
}


def learned(make: Callable[[], Defense], victim: TextClassifier, texts: list[str]) -> Defense:
    """A defense that has learned from texts with alternating labels, on which its cost does not depend."""
    batches = sorted_batches(texts, victim)
    for batch in batches:
        batch["label"] = torch.arange(len(batch["text"])) % 2
    defense = make()
    defense.learn(victim, batches)
    defense.calibrate(victim, batches)
    if defense.studies:
        defense.adopt(defense.study(victim, batches))
    return defense


def scoring(args: argparse.Namespace) -> Iterator[Comparison]:
    victim, texts = load_victim(args.model), test_texts(args.data, 2 * SHORT_TEXTS)
    batches = sorted_batches(texts[:SHORT_TEXTS], victim)
    for name, (make, target) in DEFENSES.items():
        if name in (args.defenses or DEFENSES):
            score = partial(learned(make, victim, texts[SHORT_TEXTS:]).score, victim)
            pairs = paired_seconds(score, plain_forward(victim), batches, args)
            yield Comparison(f"{name} / plain forward, SST-2, sorted by length", "s", target, pairs)


def main() -> None:
    options = parser("What second opinion, and defenses that read hidden states, cost over a plain forward.", rounds=10)
    options.add_argument("defenses", nargs="*", help=f"{', '.join(DEFENSES)}; all by default")
    args = parse(options)
    if unknown := set(args.defenses) - set(DEFENSES):
        options.error(f"there is no defense {', '.join(sorted(unknown))}; give {', '.join(DEFENSES)}")
    transformers.utils.logging.disable_progress_bar()
    load_before = load_average()
    print_table(list(scoring(args)), args, load_before)


if __name__ == "__main__":
    main()
