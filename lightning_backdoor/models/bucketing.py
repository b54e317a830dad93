"""Which rows a network reads together, so that little padding is read in few passes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch


class Limits(NamedTuple):
    """What a device reads best.

    Attributes:
        tokens: a pass, padding included.
        overhead: tokens that could be read in the time that a pass takes for itself: to read the weights on a
            processor, to start its kernels elsewhere.
    """

    tokens: int
    overhead: int


ON_PROCESSOR = Limits(tokens=512, overhead=16)
ELSEWHERE = Limits(tokens=8192, overhead=2048)


def limits(device: torch.device) -> Limits:
    """Those of the device."""
    return ON_PROCESSOR if device.type == "cpu" else ELSEWHERE


def passes(sizes: Sequence[int], best: Limits) -> list[list[int]]:
    """Which rows to read together, each pass padded to its longest, so that the time of all passes is least.

    Args:
        sizes: tokens to read of each row; rows without any are in no pass.
        best: tokens a pass, where a longer row has a pass of its own, and its overhead.

    >>> passes([9, 1, 10, 0, 1, 1], Limits(tokens=64, overhead=4))
    [[0, 2], [1, 4, 5]]
    """
    order = sorted((i for i, size in enumerate(sizes) if size), key=lambda i: sizes[i])
    ends = [k for k in range(1, len(order) + 1) if k == len(order) or sizes[order[k - 1]] < sizes[order[k]]]
    starts = [0, *ends[:-1]]
    cost, begin = [0.0], []  # of the rows up to an end, and where the last stretch of alike rows begins
    for k, end in enumerate(ends):
        longest = sizes[order[end - 1]]
        costs = [cost[j] + (end - starts[j]) * longest + best.overhead for j in range(k + 1)]
        cost.append(min(costs))
        begin.append(costs.index(cost[-1]))
    found, k = [], len(ends)
    while k:
        stretch = order[starts[begin[k - 1]] : ends[k - 1]]
        count = max(1, best.tokens // sizes[stretch[-1]])
        found += [stretch[at : at + count] for at in range(0, len(stretch), count)]
        k = begin[k - 1]
    return found
