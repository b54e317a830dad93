"""ONION's perplexities on a GPU: over the textbook loop, and over the tokens that must be read."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator
from functools import partial

import torch
from transformers import PreTrainedModel

from lightning_backdoor.language import Perplexity
from lightning_backdoor.language.language_model import load_language_model
from lightning_backdoor.language.precision import BFLOAT16, FLOAT32
from tests.measurements.gpu.report import Row
from tests.measurements.gpu.setting import SMOLLM, Setting, model_folder, texts, weights_of
from tests.measurements.gpu.timing import added_memory, compared, median_seconds, seconds
from tests.measurements.onion import textbook, tokens_to_read

#: rows and tokens per row of the plain forwards whose pace is the floor.
SHAPES = ((128, 16), (512, 16), (256, 32), (64, 128))
TOY_SHAPES = ((8, 16),)
MOST_ROUNDS = 3
#: texts that the textbook loop reads: it takes 0.07 seconds per text, and is run twelve times.
TEXTBOOK_TEXTS = 32


def onion(setting: Setting) -> Iterator[Row]:
    """The library in float32 and in bfloat16, over the textbook loop in float32 and over the floor in its precision."""
    setting = setting._replace(rounds=min(setting.rounds, MOST_ROUNDS))
    device, note = torch.device(setting.device), weights_of(SMOLLM, setting)
    model = model_folder(SMOLLM, setting, language_model=True)
    network, tokenizer = load_language_model(model, device, setting.folder)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    tokenizer.padding_side = "right"
    some = texts(setting.size(64, 3))
    few, tokens = some[:TEXTBOOK_TEXTS], tokens_to_read(tokenizer, some)
    for name, precision in (("float32", FLOAT32), ("bf16", BFLOAT16)):
        perplexity = Perplexity(model, precision=precision).to(device)
        library, reference = partial(uncached, perplexity, few), partial(textbook, network, tokenizer, few)
        title = f"perplexities / textbook loop in float32, {SMOLLM}, {len(few)} texts"
        yield compared(title, library, reference, setting, precision=name, note=note)
        library = partial(uncached, perplexity, some)
        library()
        plain = load_language_model(model, device, setting.folder, precision)[0]
        pairs = [
            (seconds(library, setting.device), tokens * seconds_per_token(plain, setting))
            for _ in range(setting.rounds)
        ]
        yield Row(
            f"perplexities / floor of {tokens:,} tokens, {SMOLLM}",
            "s",
            statistics.median(time for time, _ in pairs),
            precision=name,
            reference=statistics.median(floor for _, floor in pairs),
            ratio=statistics.median(time / floor for time, floor in pairs),
            rounds=setting.rounds,
            memory=added_memory(library, setting.device),
            note=note,
        )


def uncached(perplexity: Perplexity, some: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        perplexity.cache_dir = folder
        perplexity.leave_one_out(some)


@torch.inference_mode()
def seconds_per_token(network: PreTrainedModel, setting: Setting) -> float:
    """The pace of plain forwards of the best shape."""
    paces = []
    for rows, length in TOY_SHAPES if setting.toy else SHAPES:
        ids = torch.randint(network.config.vocab_size, (rows, length), device=setting.device)
        paces.append(median_seconds(partial(network, input_ids=ids, use_cache=False), setting) / ids.numel())
    return min(paces)
