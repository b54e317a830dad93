"""ONION's perplexities on a GPU: over the textbook loop, and over the tokens that must be read."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

import torch

from lightning_backdoor.language.language_model import load_language_model
from lightning_backdoor.language.perplexity import groups, leave_one_out
from tests.measurements.gpu.report import Row
from tests.measurements.gpu.setting import SMOLLM, Setting, model_folder, texts, weights_of
from tests.measurements.gpu.timing import Run, added_memory, compared, seconds
from tests.measurements.onion import seconds_per_token, textbook, tokens_to_read


def onion(setting: Setting) -> Iterator[Row]:
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

    def warm(run: Run) -> float:
        run()
        return seconds(run, device)

    for dtype, precision in ((torch.float32, "float32"), (torch.bfloat16, "bf16")):
        network.to(dtype)
        title = f"perplexities / textbook loop, {SMOLLM}, {len(some)} texts"
        yield compared(title, library, reference, setting, precision=precision, note=note)
        pairs = [(seconds(library, device), tokens * seconds_per_token(network, warm)) for _ in range(setting.rounds)]
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
