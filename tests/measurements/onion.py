"""What ONION's perplexities cost over a textbook loop and over the least that must be read.

Run ``python -m tests.measurements.onion --data sst2``. Without any cache, the perplexities of SST-2 test texts, and of
each text without each of its words, are compared

- with the textbook loop: one text at a time, its n + 1 variants in padded batches of 32, read whole, the graph kept;
- with the floor: the tokens that must be read (the tokens of each text, and of each variant after the prefix that it
  shares with its text, except for the last token of each, which predicts nothing) at the pace of plain forwards of
  full batches of the best shape.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lightning_backdoor.language.language_model import DEFAULT_LANGUAGE_MODEL, default_device, load_language_model
from lightning_backdoor.language.likelihood import variant
from lightning_backdoor.language.perplexity import groups, leave_one_out
from tests.measurements.pairs import Comparison, Pair, Stopwatch, load_average, parse, parser, print_table, test_texts

VARIANTS_PER_BATCH = 32
#: rows and tokens per row of the plain forwards whose pace is the floor.
SHAPES = ((8, 16), (16, 16), (32, 16), (64, 16), (16, 32), (32, 32))


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


@torch.inference_mode()
def seconds_per_token(network: PreTrainedModel, seconds: Callable[[Callable[[], object]], float]) -> float:
    """The pace of plain forwards of the best shape."""
    paces = []
    for rows, length in SHAPES:
        ids = torch.randint(network.config.vocab_size, (rows, length), device=network.device)
        paces.append(seconds(lambda ids=ids: network(input_ids=ids, use_cache=False)) / ids.numel())  # type: ignore[misc]
    return min(paces)


def main() -> None:
    options = parser("What ONION's perplexities cost over a textbook loop and over a floor.", rounds=3)
    options.add_argument("--texts", type=int, default=64, help="SST-2 test texts")
    options.set_defaults(model=DEFAULT_LANGUAGE_MODEL)
    args = parse(options)
    texts = test_texts(args.data, args.texts)
    with tempfile.TemporaryDirectory() as folder:
        network, tokenizer = load_language_model(args.model, default_device(), folder)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    tokenizer.padding_side = "right"

    def seconds(run: Callable[[], object]) -> float:
        stopwatch = Stopwatch(args.clock)
        stopwatch.start()
        run()
        if network.device.type != "cpu":
            torch.accelerator.synchronize()
        stopwatch.stop()
        return stopwatch.seconds

    sides: dict[str, Callable[[], object]] = {
        "library": lambda: [leave_one_out(network, tokenizer, group, shares=True) for group in groups(texts)],
        "textbook": lambda: textbook(network, tokenizer, texts),
    }
    textbook(network, tokenizer, texts[:2])
    leave_one_out(network, tokenizer, texts[:2], shares=True)
    load_before = load_average()
    tokens = tokens_to_read(tokenizer, texts)
    over_textbook, over_floor = [], []
    for turn in range(args.rounds):
        paces = [seconds_per_token(network, seconds)]
        taken = {}
        for side in list(sides)[:: -1 if turn % 2 else 1]:
            taken[side] = seconds(sides[side])
            paces.append(seconds_per_token(network, seconds))
        around_library = paces[:2] if turn % 2 == 0 else paces[1:]
        over_textbook.append(Pair(len(texts) / taken["library"], len(texts) / taken["textbook"]))
        over_floor.append(Pair(taken["library"], tokens * sum(around_library) / 2))
    comparisons = [
        Comparison("perplexities / textbook loop", "texts/s", ">= 4", over_textbook),
        Comparison(f"perplexities / floor of {tokens:,} tokens", "s", "<= 1.5", over_floor),
    ]
    print_table(comparisons, args, load_before)


if __name__ == "__main__":
    main()
