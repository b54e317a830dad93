"""Gradient-attention scoring on a GPU: over plain forwards, and over the pattern of the published code of X-GRAAD.

The published code (arXiv 2510.04347) pads all texts to the longest of the set, keeps the attention probabilities of all
layers and heads of an eager forward, and computes gradients for the weights too. Its Python loops over tokens are left
out here: what is compared is the work of the GPU.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightning_backdoor.batch import Batch, batch_of_texts
from lightning_backdoor.defenses import GradientAttention
from lightning_backdoor.victim import TextClassifier
from tests.measurements.gpu.report import Row
from tests.measurements.gpu.setting import BERT, MINILM, Setting, texts, victim, weights_of
from tests.measurements.gpu.timing import compared

BATCH_SIZE = 32
BATCHES = 8


def scoring(setting: Setting) -> Iterator[Row]:
    for name in (MINILM, BERT):
        loaded = victim(name, setting)
        network = eager(loaded)
        size = setting.size(BATCH_SIZE, 4)
        short = texts(size * setting.size(BATCHES, 2))
        long = texts(size, words=loaded.max_length)
        for kind, some in (("short texts", short), (f"texts of {loaded.max_length} tokens", long)):
            # of similar length, as evaluation forms its batches; and in the order of the texts, as published
            batches = batches_of(sorted(some, key=lambda text: -len(text)), loaded, size, setting.device)
            longest = max(batch["input_ids"].shape[1] for batch in batches)
            padded = [padded_to(batch, longest) for batch in batches_of(some, loaded, size, setting.device)]
            score = partial(score_all, loaded, batches)
            references = {
                "plain forward": partial(forward_all, loaded, batches),
                "published pattern": partial(published_all, network, padded),
            }
            for reference, run in references.items():
                title = f"scoring / {reference}, {name}, {len(some)} {kind}"
                yield compared(title, score, run, setting, note=weights_of(name, setting))


def score_all(victim: TextClassifier, batches: Sequence[Batch]) -> None:
    defense = GradientAttention()
    for batch in batches:
        defense.score(victim, batch)


@torch.inference_mode()
def forward_all(victim: TextClassifier, batches: Sequence[Batch]) -> None:
    for batch in batches:
        victim(batch)


def published_all(network: PreTrainedModel, batches: Sequence[Batch]) -> None:
    for batch in batches:
        published_pattern(network, batch)


def batches_of(some: Sequence[str], victim: TextClassifier, size: int, device: str) -> list[Batch]:
    """Batches on the device, in the order of the texts."""
    parts = [some[start : start + size] for start in range(0, len(some), size)]
    made = [batch_of_texts(part, victim.tokenizer, victim.max_length) for part in parts]
    return [move_data_to_device(batch, torch.device(device)) for batch in made]


def padded_to(batch: Batch, length: int) -> Batch:
    """The batch with padding on the right up to a length."""
    missing = length - batch["input_ids"].shape[1]
    ids, mask = (torch.nn.functional.pad(batch[name], (0, missing)) for name in ("input_ids", "attention_mask"))
    return {**batch, "input_ids": ids, "attention_mask": mask}


def eager(victim: TextClassifier) -> PreTrainedModel:
    """A copy of the victim's network with eager attention, all weights trainable."""
    network: PreTrainedModel = copy.deepcopy(victim.network).requires_grad_(True)
    network.set_attn_implementation("eager")
    return network.eval()


def published_pattern(network: PreTrainedModel, batch: Batch) -> tuple[Tensor, Tensor]:
    """Attention received and gradient norm per token, both (batch, length), as the published code computes them."""
    embedded: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: Tensor) -> None:
        output.retain_grad()
        embedded.append(output)

    handle = network.get_input_embeddings().register_forward_hook(keep)
    output = network(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], output_attentions=True)
    handle.remove()
    attention = torch.stack(output.attentions).detach().mean(dim=(0, 2)).sum(dim=1)
    output.logits.max(dim=-1).values.sum().backward()
    (words,) = embedded
    assert words.grad is not None
    gradient = words.grad.norm(dim=-1)
    network.zero_grad()
    return attention, gradient
