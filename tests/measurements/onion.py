"""What ONION's perplexities cost over a textbook loop and over the least that must be read.

Run ``python -m tests.measurements.onion --data sst2``; ``--precision`` names one precision.
Without any cache, the perplexities of SST-2 test texts, and of each text without each of its words, are compared

- with the textbook loop, in float32: one text at a time, its n + 1 variants in padded batches of 32, read whole, the
  graph kept;
- with the floor: the tokens that must be read (the tokens of each text, and of each variant after the prefix that it
  shares with its text, except for the last token of each, which predicts nothing) at the pace of plain forwards, with
  all logits, of the best shape and the best division among threads, in the precision of the library's side. The best is
  chosen first, and its pace is measured anew before and after the library: the least of noisy paces would be too low.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lightning_backdoor.language import Perplexity
from lightning_backdoor.language.language_model import DEFAULT_LANGUAGE_MODEL, default_device, load_language_model
from lightning_backdoor.language.precision import BFLOAT16, FLOAT32
from lightning_backdoor.language.prefixes import variant
from lightning_backdoor.models.parallel import in_parallel, worker_count
from tests.measurements.pairs import Comparison, Pair, Stopwatch, load_average, parse, parser, print_table, test_texts

VARIANTS_PER_BATCH = 32
#: rows and tokens per row of the plain forwards whose pace is the floor.
SHAPES = ((32, 16), (64, 16), (64, 8), (16, 32), (32, 32))
#: measurements of each shape, of which the median counts.
FLOOR_ROUNDS = 5
#: the ratio to the textbook loop that is aimed at.
TARGETS = {FLOAT32: "", BFLOAT16: ">= 4"}


def variants_of(text: str) -> list[str]:
    words = text.split(" ")
    return [" ".join(words[:i] + words[i + 1 :]) for i in range(len(words))]


def textbook(network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> None:
    for text in texts:
        rows = [text, *variants_of(text)]
        for start in range(0, len(rows), VARIANTS_PER_BATCH):
            batch = tokenizer(rows[start : start + VARIANTS_PER_BATCH], padding=True, return_tensors="pt")
            batch = batch.to(network.device)
            logits = network(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
            targets = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)[:, 1:]
            losses = nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), targets, reduction="none")
            (losses.sum(dim=1) / (targets != -100).sum(dim=1)).exp().tolist()


def tokens_to_read(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> int:
    count = 0
    for text in texts:
        full, *rest = tokenizer([text, *variants_of(text)], add_special_tokens=False)["input_ids"]
        distinct = {tuple(ids) for ids in rest}
        count += len(full) - 1
        count += sum(max(0, len(ids) - 1 - variant(0, full, list(ids)).shared) for ids in distinct)
    return count


class Forwards(NamedTuple):
    """Plain forwards of one shape, one at a time on all threads or one per thread."""

    rows: int
    length: int
    at_once: int

    def seconds_per_token(self, network: PreTrainedModel, seconds: Callable[[Callable[[], object]], float]) -> float:
        """The median of several measurements."""
        ids = torch.randint(network.config.vocab_size, (self.rows, self.length), device=network.device)

        @torch.inference_mode()
        def forward(ids: Tensor) -> None:
            network(input_ids=ids, use_cache=False)

        def run() -> object:
            return list(in_parallel(forward, [ids] * self.at_once, network.device))

        return statistics.median(seconds(run) for _ in range(FLOOR_ROUNDS)) / (self.at_once * ids.numel())


def best_forwards(network: PreTrainedModel, seconds: Callable[[Callable[[], object]], float]) -> Forwards:
    """The forwards with the best pace."""
    known = [Forwards(*shape, count) for shape in SHAPES for count in sorted({1, worker_count(network.device)})]
    return min(known, key=lambda forwards: forwards.seconds_per_token(network, seconds))


def onion(args: argparse.Namespace) -> Iterator[Comparison]:
    """Compares the library in each precision."""
    texts, device = test_texts(args.data, args.texts), default_device()

    def seconds(run: Callable[[], object]) -> float:
        stopwatch = Stopwatch(args.clock)
        stopwatch.start()
        run()
        if device.type != "cpu":
            torch.accelerator.synchronize()
        stopwatch.stop()
        return stopwatch.seconds

    def library(perplexity: Perplexity, part: Sequence[str] = texts) -> None:
        with tempfile.TemporaryDirectory() as folder:
            perplexity.cache_dir = folder
            perplexity.leave_one_out(part)

    with tempfile.TemporaryDirectory() as folder:
        network, tokenizer = load_language_model(args.language_model, device, folder)
        networks = {
            precision: load_language_model(args.language_model, device, folder, precision)[0]
            for precision in args.precision
        }
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    tokenizer.padding_side = "right"
    textbook(network, tokenizer, texts[:2])
    tokens = tokens_to_read(tokenizer, texts)
    models = {precision: Perplexity(args.language_model, precision=precision) for precision in args.precision}
    over_textbook: dict[str, list[Pair]] = {precision: [] for precision in models}
    over_floor: dict[str, list[Pair]] = {precision: [] for precision in models}
    for perplexity in models.values():
        library(perplexity, texts[:2])
    floors = {precision: best_forwards(networks[precision], seconds) for precision in models}
    for turn in range(args.rounds):
        taken: dict[str, float] = {}
        for side in ("textbook", *models)[:: -1 if turn % 2 else 1]:
            if side == "textbook":
                taken[side] = seconds(lambda: textbook(network, tokenizer, texts))
                continue
            before = floors[side].seconds_per_token(networks[side], seconds)
            taken[side] = seconds(lambda side=side: library(models[side]))  # type: ignore[misc]
            after = floors[side].seconds_per_token(networks[side], seconds)
            over_floor[side].append(Pair(taken[side], tokens * (before + after) / 2))
        for precision, pairs in over_textbook.items():
            pairs.append(Pair(len(texts) / taken[precision], len(texts) / taken["textbook"]))
    for precision in models:
        title = f"ONION in {precision} / textbook loop in float32"
        yield Comparison(title, "texts/s", TARGETS[precision], over_textbook[precision])
        title = f"ONION / floor of {tokens:,} tokens, both in {precision}"
        yield Comparison(title, "s", "<= 1.1", over_floor[precision])


PARTS = {"onion": onion}


def main() -> int:
    options = parser("What ONION's perplexities cost over a textbook loop and over a floor.", rounds=3)
    options.add_argument("--texts", type=int, default=32, help="SST-2 test texts")
    options.add_argument("--language-model", default=DEFAULT_LANGUAGE_MODEL)
    precisions = (FLOAT32, BFLOAT16)
    options.add_argument("--precision", choices=precisions, nargs="+", default=precisions, help="of the library's side")
    args = parse(options)
    load_before = load_average()
    print_table(list(onion(args)), args, load_before)
    return 0


if __name__ == "__main__":
    sys.exit(main())
