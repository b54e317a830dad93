"""ONION's perplexities on a GPU: over the textbook loop, and over the tokens that must be read."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from functools import partial

import torch

from lightning_backdoor.language.language_model import load_language_model
from lightning_backdoor.language.perplexity import groups, leave_one_out
from tests.measurements.gpu.report import Row
from tests.measurements.gpu.setting import SMOLLM, Setting, model_folder, texts, weights_of
from tests.measurements.gpu.timing import added_memory, compared, median_seconds, seconds
from tests.measurements.onion import textbook, tokens_to_read

#: rows and tokens per row of the plain forwards whose pace is the floor.
SHAPES = ((128, 16), (512, 16), (256, 32), (64, 128))
TOY_SHAPES = ((8, 16),)
MOST_ROUNDS = 3  # the textbook loop takes seconds


def onion(setting: Setting) -> Iterator[Row]:
    setting = setting._replace(rounds=min(setting.rounds, MOST_ROUNDS))
    device, note = setting.device, weights_of(SMOLLM, setting)
    folder = model_folder(SMOLLM, setting, language_model=True)
    network, tokenizer = load_language_model(folder, torch.device(device), setting.folder)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    tokenizer.padding_side = "right"
    some = texts(setting.size(64, 3))
    tokens = tokens_to_read(tokenizer, some)

    def library() -> None:
        for group in groups(some):
            leave_one_out(network, tokenizer, group, shares=True)

    def reference() -> None:
        textbook(network, tokenizer, some)

    def floor() -> float:
        """Seconds that the tokens take at the pace of plain forwards of the best shape."""
        paces = []
        with torch.inference_mode():
            for rows, length in TOY_SHAPES if setting.toy else SHAPES:
                ids = torch.randint(network.config.vocab_size, (rows, length), device=device)
                forward = partial(network, input_ids=ids, use_cache=False)
                paces.append(median_seconds(forward, setting) / ids.numel())
        return tokens * min(paces)

    for dtype, precision in ((torch.float32, "float32"), (torch.bfloat16, "bf16")):
        network.to(dtype)
        title = f"perplexities / textbook loop, {SMOLLM}, {len(some)} texts"
        yield compared(title, library, reference, setting, precision=precision, note=note)
        pairs = [(seconds(library, device), floor()) for _ in range(setting.rounds)]
        yield Row(
            f"perplexities / floor of {tokens:,} tokens, {SMOLLM}",
            "s",
            statistics.median(time for time, _ in pairs),
            precision=precision,
            reference=statistics.median(floor for _, floor in pairs),
            ratio=statistics.median(time / floor for time, floor in pairs),
            rounds=setting.rounds,
            memory=added_memory(library, device),
            note=note,
        )
