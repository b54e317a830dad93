"""Grouping of rows by length for forward passes, so that little padding is computed in few passes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch


class PassLimits(NamedTuple):
    """Limits on the size of forward passes, for a device.

    Attributes:
        tokens: at most this many tokens per pass, padding included.
        overhead: the fixed cost of a pass (reading the weights on a processor, starting kernels on a GPU), given as the
            number of tokens that could be read in the same time.
    """

    tokens: int
    overhead: int


PROCESSOR_LIMITS = PassLimits(tokens=512, overhead=16)
#: in bfloat16 with AMX, tokens take less time, and weights are packed anew in each pass.
AMX_LIMITS = PassLimits(tokens=2048, overhead=64)
ACCELERATOR_LIMITS = PassLimits(tokens=8192, overhead=2048)


def pass_limits(device: torch.device, dtype: torch.dtype = torch.float32) -> PassLimits:
    """The limits on forward passes for a device and a type of weights.

    Args:
        device: the device that the passes run on.
        dtype: the type of the network's weights; on a processor with AMX, bfloat16 has limits of its own.

    Returns:
        The limits, to be given to :func:`group_by_length`.
    """
    if device.type != "cpu":
        return ACCELERATOR_LIMITS
    amx = dtype == torch.bfloat16 and torch.cpu._is_amx_tile_supported()  # private: torch 2.13.0
    return AMX_LIMITS if amx else PROCESSOR_LIMITS


def group_by_length(lengths: Sequence[int], limits: PassLimits) -> list[list[int]]:
    """Groups rows into forward passes so that all passes together take the least time.

    Each pass is padded to its longest row, so rows of similar length come together.

    Args:
        lengths: number of tokens of each row; rows of length 0 are not in any group.
        limits: size and fixed cost of a pass; a row longer than ``limits.tokens`` is alone in its pass.

    Returns:
        The indices of the rows of each pass, the longest rows first.

    >>> group_by_length([9, 1, 10, 0, 1, 1], PassLimits(tokens=64, overhead=4))
    [[0, 2], [1, 4, 5]]
    """
    order = sorted((row for row, length in enumerate(lengths) if length), key=lambda row: lengths[row])
    # rows of equal length stay together, so only the ends of such runs can be ends of a pass
    ends = [
        end for end in range(1, len(order) + 1) if end == len(order) or lengths[order[end - 1]] < lengths[order[end]]
    ]
    starts = [0, *ends[:-1]]
    # least_costs[k]: of all rows before the k-th end; first_runs[k]: the run with which its last stretch begins
    least_costs, first_runs = [0.0], []
    for k, end in enumerate(ends):
        longest = lengths[order[end - 1]]
        costs = [least_costs[j] + (end - starts[j]) * longest + limits.overhead for j in range(k + 1)]
        least_costs.append(min(costs))
        first_runs.append(costs.index(least_costs[-1]))
    groups: list[list[int]] = []
    k = len(ends)
    while k:
        stretch = order[starts[first_runs[k - 1]] : ends[k - 1]]
        rows_per_pass = max(1, limits.tokens // lengths[stretch[-1]])
        groups += [stretch[start : start + rows_per_pass] for start in range(0, len(stretch), rows_per_pass)]
        k = first_runs[k - 1]
    return groups


def divide_evenly(
    lengths: Sequence[int], limits: PassLimits, similar_by: Sequence[int] | None = None
) -> list[list[int]]:
    """Divides rows into forward passes of about equal numbers of tokens, for models that read rows without padding.

    The number of passes is even, so that two threads end at one time, unless passes would be too small. Similar rows
    come together.

    Args:
        lengths: number of tokens of each row.
        limits: size and fixed cost of a pass; a row longer than ``limits.tokens`` is alone in its pass.
        similar_by: number of each row, by which rows are similar; their lengths by default.

    Returns:
        The indices of the rows of each pass, the rows with the highest number first.

    >>> divide_evenly([1, 5, 3, 3], PassLimits(tokens=16, overhead=1))
    [[1, 2], [3, 0]]
    >>> divide_evenly([2, 2, 2, 2], PassLimits(tokens=16, overhead=4), similar_by=[0, 9, 0, 9])
    [[1, 3, 0, 2]]
    """
    keys = lengths if similar_by is None else similar_by
    order = sorted(range(len(lengths)), key=keys.__getitem__, reverse=True)
    total = sum(lengths)
    # a pass takes rows until it has its share, and may exceed it by less than a row: a share leaves room for one
    share = max(limits.tokens - max(lengths, default=0), limits.tokens // 2, 1)
    count = -(-total // share)
    if total > 8 * limits.overhead:
        count += count % 2
    groups: list[list[int]] = []
    before = size = 0  # tokens of all rows so far, and of the last pass
    for row in order:
        full = size and (before >= len(groups) * total / count or size + lengths[row] > limits.tokens)
        if not groups or full:
            groups.append([])
            size = 0
        groups[-1].append(row)
        before, size = before + lengths[row], size + lengths[row]
    return groups
