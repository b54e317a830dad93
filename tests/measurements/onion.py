"""What ONION's perplexities cost, as ratios of paired timings; read, not asserted.

Run ``python tests/measurements/onion.py``; ``--threads 1 --clock cpu`` where other work wants the same cores. Compared
are, without any cache, the perplexities of the same SST-2 test texts and of each without one of its words:

- by the textbook loop: one text at a time, its n + 1 variants in padded batches of 32, read whole, the graph kept;
- with the floor: the tokens that must be read (those of each text, and of each variant after the prefix it shares, but
  for the last of each, which predicts nothing) at the pace of plain forwards of full batches of the best shape.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Sequence

import torch
from rich.console import Console
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lightning_backdoor.language import Perplexity
from lightning_backdoor.language.language_model import DEFAULT_LANGUAGE_MODEL
from lightning_backdoor.language.likelihood import variant
from lightning_backdoor.language.perplexity import groups, leave_one_out
from tests.measurements.cost import CLOCKS, Line, Pair, report
from tests.support.shared_files import sst2

VARIANTS_A_BATCH = 32
SHAPES = ((8, 16), (16, 16), (32, 16), (64, 16), (16, 32), (32, 32))  # rows, tokens a row


def variants_of(text: str) -> list[str]:
    words = text.split(" ")
    return [" ".join(words[:i] + words[i + 1 :]) for i in range(len(words))]


def textbook(network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> None:
    for text in texts:
        rows = [text, *variants_of(text)]
        for start in range(0, len(rows), VARIANTS_A_BATCH):
            batch = tokenizer(rows[start : start + VARIANTS_A_BATCH], padding=True, return_tensors="pt")
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


@torch.inference_mode()
def seconds_a_token(network: PreTrainedModel, seconds: Callable[[Callable[[], object]], float]) -> float:
    """Of the best shape."""
    found = []
    for rows, length in SHAPES:
        ids = torch.randint(network.config.vocab_size, (rows, length), device=network.device)
        found.append(seconds(lambda ids=ids: network(input_ids=ids, use_cache=False)) / ids.numel())  # type: ignore[misc]
    return min(found)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="What ONION's perplexities cost, as ratios of paired timings.")
    parser.add_argument("--rounds", type=int, default=3, help="how often each pair is measured")
    parser.add_argument(
        "--clock", choices=CLOCKS, default="wall", help="cpu counts the processor seconds of all threads"
    )
    parser.add_argument("--threads", type=int, default=2, help="threads of torch")
    parser.add_argument("--texts", type=int, default=64, help="SST-2 test texts")
    parser.add_argument("--model", default=DEFAULT_LANGUAGE_MODEL, help="the language model")
    return parser.parse_args()


def main() -> None:
    args = parse()
    torch.set_num_threads(args.threads)
    texts = [text for text, _ in sst2("test", args.texts)]
    with tempfile.TemporaryDirectory() as folder:
        network, tokenizer = Perplexity(args.model, folder)._loaded()
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    tokenizer.padding_side = "right"

    def seconds(run: Callable[[], object]) -> float:
        started = CLOCKS[args.clock]()
        run()
        if network.device.type != "cpu":
            torch.accelerator.synchronize()
        return CLOCKS[args.clock]() - started

    sides: dict[str, Callable[[], object]] = {
        "ours": lambda: [leave_one_out(network, tokenizer, group, shares=True) for group in groups(texts)],
        "textbook": lambda: textbook(network, tokenizer, texts),
    }
    textbook(network, tokenizer, texts[:2])
    leave_one_out(network, tokenizer, texts[:2], shares=True)
    load = os.getloadavg()[0]
    tokens = tokens_to_read(tokenizer, texts)
    throughput, floor = [], []
    for turn in range(args.rounds):
        pace = [seconds_a_token(network, seconds)]
        taken = {}
        for side in list(sides)[:: -1 if turn % 2 else 1]:
            taken[side] = seconds(sides[side])
            pace.append(seconds_a_token(network, seconds))  # ours lies between two of them
        near = pace[:2] if turn % 2 == 0 else pace[1:]
        throughput.append(Pair(len(texts) / taken["ours"], len(texts) / taken["textbook"]))
        floor.append(Pair(taken["ours"], tokens * sum(near) / 2))
    lines = [
        Line("perplexities / textbook loop", "texts/s", ">= 4", throughput),
        Line(f"perplexities / floor of {tokens:,} tokens", "s", "<= 1.5", floor),
    ]
    caption = f"{len(texts)} SST-2 test texts on {network.device.type}; medians of paired ratios, {args.clock} clock;"
    caption += f" {args.threads} threads of {os.cpu_count()} cores; load average {load:.1f} before,"
    caption += f" {os.getloadavg()[0]:.1f} after"
    Console(width=None if sys.stdout.isatty() else 140).print(report(lines, caption))


if __name__ == "__main__":
    main()
