"""Column sums of attention by FlexAttention, an experiment: a second pass in which queries and keys change places.

The first pass gives, with the output of attention, the log of each query's sum of exponentials, lse. The attention that
token j receives is the sum over queries i of exp(s_ij - lse_i). That is again a sum of exponentials, now over queries:
with keys in the place of queries and the scores s_ij - lse_i, the second pass gives its log. No probability is ever
written to memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from lightning_backdoor.models import column_sums as sums
from lightning_backdoor.models.column_sums import column_sums
from tests.measurements.gpu.report import Row
from tests.measurements.gpu.setting import Setting
from tests.measurements.gpu.timing import compared

#: batch, heads, length and head size of layers of MiniLM and BERT-base.
SHAPES = ((32, 12, 128, 32), (32, 12, 512, 64))
TOY_SHAPES = ((2, 2, 16, 16),)
#: probabilities that the library holds at once: as on a processor, and as on a GPU.
CHUNKS = (sums.CHUNK, sums.GPU_CHUNK)
#: largest difference between column sums of the two kinds in float32, whose mean is 1.
TOLERANCE = 1e-4

#: ``flex_attention``, compiled or not; of its signatures the one with further results.
Flex = Callable[..., Any]


def flex_column_sums(flex: Flex, query: Tensor, key: Tensor, value: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """The output of attention, and the attention that each token receives from tokens, averaged over heads.

    Args:
        flex: ``flex_attention``, compiled or not.
        query: (batch, heads, length, head size); likewise ``key`` and ``value``.
        key: see ``query``.
        value: see ``query``.
        real: (batch, length), bool, False for padding.

    Returns:
        (batch, heads, length, head size) and (batch, length), float32; the sums at padding have no meaning.
    """
    from torch.nn.attention.flex_attention import AuxRequest

    def to_real(score: Tensor, batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return torch.where(real[batch, k], score, -torch.inf)

    output, first = flex(query, key, value, score_mod=to_real, return_aux=AuxRequest(lse=True))
    lse: Tensor = first.lse.masked_fill(~real[:, None], torch.inf)  # padding as query gives nothing

    def share(score: Tensor, batch: Tensor, head: Tensor, k: Tensor, q: Tensor) -> Tensor:
        return score - lse[batch, head, q]

    # the values do not matter, and the narrowest that there are cost least
    _, second = flex(key, query, query[..., :16], score_mod=share, return_aux=AuxRequest(lse=True))
    received: Tensor = second.lse.exp().mean(dim=1)
    return output, received


def by_flex(flex: Flex, query: Tensor, key: Tensor, value: Tensor, real: Tensor) -> Tensor:
    """Attention and its column sums by two passes of FlexAttention; returns the sums."""
    with torch.no_grad():
        return flex_column_sums(flex, query, key, value, real)[1]


def by_library(chunk: int, query: Tensor, key: Tensor, value: Tensor, real: Tensor) -> Tensor:
    """Attention by SDPA, and its column sums as the library computes them, in chunks; returns the sums."""
    mask = real[:, None, None].expand(-1, 1, real.shape[1], -1)
    held = patch.multiple(sums, CHUNK=chunk, GPU_CHUNK=chunk)
    with torch.no_grad(), held:
        nn.functional.scaled_dot_product_attention(query, key, value, mask)
        return column_sums(query, key, mask, query.shape[-1] ** -0.5, real.float())


def flex_sums(setting: Setting) -> Iterator[Row]:
    """Attention with its column sums, of one layer: by the library over FlexAttention.

    Raises:
        RuntimeError: in float32, the two differ by more than ``TOLERANCE``.
    """
    from torch.nn.attention.flex_attention import flex_attention

    for batch, heads, length, size in TOY_SHAPES if setting.toy else SHAPES:
        generator = torch.Generator(setting.device).manual_seed(0)
        drawn = torch.randn(3, batch, heads, length, size, device=setting.device, generator=generator)
        lengths = torch.linspace(length // 4, length, batch, device=setting.device).long()
        real = torch.arange(length, device=setting.device) < lengths[:, None]
        for dtype, precision in ((torch.float32, "float32"), (torch.bfloat16, "bf16")):
            torch.compiler.reset()  # after a number of shapes, torch would no longer compile
            # on a processor the compiled kernel does not give the sums' logs
            flex = torch.compile(flex_attention, dynamic=False) if setting.device == "cuda" else flex_attention
            layer = (*drawn.to(dtype), real)
            difference = float((by_flex(flex, *layer) - by_library(CHUNKS[0], *layer)).abs()[real].max())
            for chunk in CHUNKS:
                yield compared(
                    f"SDPA and column sums / FlexAttention, {batch} x {heads} x {length} x {size}",
                    partial(by_library, chunk, *layer),
                    partial(by_flex, flex, *layer),
                    setting,
                    precision=precision,
                    note=f"{chunk:,} probabilities at once; largest difference {difference:.1e}",
                )
            if precision == "float32" and not difference <= TOLERANCE:
                raise RuntimeError(f"the column sums differ by {difference:.1e}, more than {TOLERANCE:.0e}")
