"""Throughput of plain networks on a GPU: forward passes and training steps, by precision, and compiled."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from tests.measurements.gpu.report import Row
from tests.measurements.gpu.setting import BERT, LABELS, LLAMA, MINILM, Setting, network
from tests.measurements.gpu.timing import Run, added_memory, median_seconds, precision, seconds

#: texts per batch, by model.
BATCH_SIZES = {MINILM: (32, 256), BERT: (32, 256), LLAMA: (16,)}
TOKENS = 128
PRECISIONS = ("float32", "tf32", "bf16-mixed")
#: the precision in which networks are compiled.
COMPILED_IN = "bf16-mixed"


def plain_throughput(name: str, setting: Setting) -> Iterator[Row]:
    """A network as it is, in each precision."""
    made = network(name, setting)
    for size in BATCH_SIZES[name][: setting.size(2, 1)]:
        for precision_name in PRECISIONS:
            if precision_name != "tf32" or setting.device == "cuda":
                yield from rows(name, made, setting, precision_name, setting.size(size, 4))


def compiled_throughput(name: str, setting: Setting) -> Iterator[Row]:
    """A network after ``torch.compile``, whose own time is in the note."""
    torch.compiler.reset()
    # on a processor, compilers take minutes: it is only tried whether the network can be captured
    backend = "inductor" if setting.device == "cuda" else "eager"
    made: Any = torch.compile(network(name, setting), dynamic=False, backend=backend)
    size = setting.size(BATCH_SIZES[name][0], 4)
    yield from rows(name, made, setting, COMPILED_IN, size, compiles=backend)


def rows(
    name: str, module: nn.Module, setting: Setting, precision_name: str, size: int, compiles: str = ""
) -> Iterator[Row]:
    """The forward pass and the training step of a network, each as a row; ``compiles`` names what compiles it."""
    length = setting.size(TOKENS, 16)
    generator = torch.Generator(setting.device).manual_seed(0)
    ids = torch.randint(1, 999, (size, length), device=setting.device, generator=generator)  # 0 is padding
    labels = torch.arange(size, device=setting.device) % len(LABELS)
    for what, make in (("forward", forward), ("training step", training_step)):
        run = precision(precision_name, setting.device)(make(module, ids, labels))
        first = seconds(run, setting.device)
        taken = median_seconds(run, setting)
        memory = added_memory(run, setting.device)
        note = f"{size * length / taken:,.0f} tokens/s"
        yield Row(
            f"{what}{' compiled' if compiles else ''}, {name}, {size} x {length} tokens",
            "texts/s",
            size / taken,
            precision=precision_name,
            rounds=setting.rounds,
            memory=memory,
            note=f"{note}; {compiles}, first call {first:.1f} s" if compiles else note,
        )


def forward(module: nn.Module, ids: Tensor, labels: Tensor) -> Run:
    """Logits of a batch, in evaluation mode."""
    mask = torch.ones_like(ids)

    @torch.no_grad()
    def run() -> None:
        module.eval()
        module(input_ids=ids, attention_mask=mask)

    return run


def training_step(module: nn.Module, ids: Tensor, labels: Tensor) -> Run:
    """Loss, gradients and a step of AdamW, as in fine-tuning."""
    mask = torch.ones_like(ids)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-6, fused=True)

    def run() -> None:
        module.train()
        logits = module(input_ids=ids, attention_mask=mask).logits
        torch.autograd.backward(nn.functional.cross_entropy(logits.float(), labels))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return run
