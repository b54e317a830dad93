"""What the data defenses that read hidden states cost over plain forward passes.

Run ``python -m tests.measurements.data_defenses --data sst2``, or name parts:
``python -m tests.measurements.data_defenses cube --rounds 10``. ``--model`` names the victim, an encoder or a decoder.
On SST-2 training texts:

- CUBE: the hidden states of all texts, and the whole of cleaning, with reducing and clustering, over plain forwards of
  the texts in batches of 32 texts of similar length.
- BKI: the changes of all words over the floor: the tokens that must be read at the pace of plain forwards of the best
  shape and the best division among threads. An encoder must read each distinct variant of a text whole, a decoder from
  the first token in which it differs from the text.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from lightning_backdoor.batch import token_ids
from lightning_backdoor.data.cleaning import LabelledText, TrustedRows
from lightning_backdoor.defenses.cube import Cube
from lightning_backdoor.defenses.row_states import row_states
from lightning_backdoor.defenses.word_changes import word_changes
from lightning_backdoor.language.prefixes import variant
from lightning_backdoor.models.parallel import in_parallel, worker_count
from lightning_backdoor.models.readout import is_causal
from lightning_backdoor.victim import TextClassifier
from tests.measurements.onion import SHAPES, variants_of
from tests.measurements.pairs import (
    Comparison,
    Pair,
    Stopwatch,
    alternate,
    load_average,
    load_victim,
    parse,
    parser,
    plain_forward,
    print_table,
    sorted_batches,
)


def training_rows(args: argparse.Namespace, count: int) -> list[LabelledText]:
    """The first rows of ``train.tsv``."""
    with (args.data / "train.tsv").open(encoding="utf-8", newline="") as file:
        lines = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        return [LabelledText(line["text"], int(line["label"])) for line in lines][:count]


def timed(run: Callable[[], object], args: argparse.Namespace) -> float:
    stopwatch = Stopwatch(args.clock)
    stopwatch.start()
    run()
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    stopwatch.stop()
    return stopwatch.seconds


def cube(args: argparse.Namespace) -> Iterator[Comparison]:
    victim, rows = on_device(args), training_rows(args, args.rows)
    texts = [row.text for row in rows]
    device = victim.network.device
    batches = [
        {**batch, "input_ids": batch["input_ids"].to(device), "attention_mask": batch["attention_mask"].to(device)}
        for batch in sorted_batches(texts, victim)
    ]
    forward = plain_forward(victim)

    def plain() -> float:
        return timed(lambda: [forward(batch) for batch in batches], args)  # type: ignore[arg-type]

    plain()
    row_states(victim, texts[:64])
    pairs = list(alternate(lambda: timed(lambda: row_states(victim, texts), args), plain, args.rounds))
    yield Comparison(f"CUBE, states of {len(rows):,} rows / plain forwards", "s", "<= 1.1", pairs)
    clean = Cube().clean
    clean(rows[:100], TrustedRows([], []), victim)
    whole = list(alternate(lambda: timed(lambda: clean(rows, TrustedRows([], []), victim), args), plain, args.rounds))
    yield Comparison("CUBE with reducing and clustering / plain forwards", "s", "", whole)


def tokens_to_read(victim: TextClassifier, texts: list[str]) -> int:
    """The tokens that BKI must read: of each distinct text and variant, in decoders after the prefix that is shared."""
    causal, count = is_causal(victim.network), 0
    for text in dict.fromkeys(texts):
        full, *rest = token_ids([text, *variants_of(text)], victim.tokenizer, victim.max_length)
        distinct = {tuple(ids) for ids in rest} - {tuple(full)}
        count += len(full)
        count += sum(len(ids) - (variant(0, full, list(ids)).shared if causal else 0) for ids in distinct)
    return count


def seconds_per_token(victim: TextClassifier, args: argparse.Namespace) -> float:
    """The pace of plain forwards of the best shape, one at a time on all threads or one per thread."""
    network = victim.network

    @torch.inference_mode()
    def forward(ids: Tensor) -> None:
        network(input_ids=ids, attention_mask=torch.ones_like(ids))

    paces = []
    for rows, length in SHAPES:
        ids = torch.randint(5, network.config.vocab_size, (rows, length), device=network.device)
        for count in {1, worker_count(network.device)}:

            def run(parts: list[Tensor] = [ids] * count) -> object:
                return list(in_parallel(forward, parts, network.device))

            paces.append(timed(run, args) / (count * ids.numel()))
    return min(paces)


def bki(args: argparse.Namespace) -> Iterator[Comparison]:
    victim = on_device(args)
    texts = [row.text for row in training_rows(args, args.texts)]
    tokens, pairs = tokens_to_read(victim, texts), []
    word_changes(victim, texts[:2])
    for _ in range(args.rounds):
        before = seconds_per_token(victim, args)
        taken = timed(lambda: word_changes(victim, texts), args)
        pairs.append(Pair(taken, tokens * (before + seconds_per_token(victim, args)) / 2))
    yield Comparison(f"BKI, {len(texts):,} texts / floor of {tokens:,} tokens", "s", "<= 1.3", pairs)


def on_device(args: argparse.Namespace) -> TextClassifier:
    victim = load_victim(args.model)
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return victim.to(device or "cpu")


PARTS = {"cube": cube, "bki": bki}


def main() -> int:
    options = parser("What the data defenses that read hidden states cost over plain forward passes.", rounds=5)
    options.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; all by default")
    options.add_argument("--rows", type=int, default=1000, help="SST-2 training rows that CUBE cleans")
    options.add_argument("--texts", type=int, default=100, help="SST-2 training texts whose words BKI leaves out")
    args = parse(options)
    unknown = [part for part in args.parts if part not in PARTS]
    if unknown:
        options.error(f"{unknown[0]!r} is none of {', '.join(PARTS)}")
    load_before = load_average()
    print_table([row for part in args.parts or PARTS for row in PARTS[part](args)], args, load_before)
    return 0


if __name__ == "__main__":
    sys.exit(main())
