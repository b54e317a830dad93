"""Independent parts of a computation on a processor, each on threads of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

from lightning_backdoor.models.bucketing import PassLimits, group_by_length

Part = TypeVar("Part")
Result = TypeVar("Result")

#: maximum of parts that are computed at once; beyond it, Python itself would be the limit.
MAX_WORKERS = 8


def worker_count(device: torch.device) -> int:
    """The number of parts that are computed at once on a device: 1 on an accelerator, which is faster alone."""
    return min(torch.get_num_threads(), MAX_WORKERS) if device.type == "cpu" else 1


def in_parallel(compute: Callable[[Part], Result], parts: Sequence[Part], device: torch.device) -> Iterator[Result]:
    """Computes parts, several at once on a processor, and yields their results in the order of the parts.

    Torch would divide each operation among all threads, and wait for the slowest: beside other work on one of two
    cores, both would go at the pace of the slower one. Here a slow core only computes fewer parts.

    Args:
        compute: function from a part to its result; it is called in other threads, in which gradients and autocast are
            as in a new thread.
        parts: the parts.
        device: the device on which they are computed.
    """
    threads = torch.get_num_threads()
    workers = min(worker_count(device), len(parts))
    if workers < 2:
        yield from map(compute, parts)
        return
    # the setting is that of one thread, and the default of new threads
    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(max(1, threads // workers),))
    try:
        yield from pool.map(compute, parts)
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)


def in_passes(
    compute: Callable[[list[int]], Result], lengths: Sequence[int], limits: PassLimits, device: torch.device
) -> Iterator[tuple[list[int], Result]]:
    """Computes rows in passes of rows of similar length, several passes at once on a processor.

    The passes do not depend on the number of threads.

    Args:
        compute: function from the indices of the rows of a pass to their result; see :func:`in_parallel`.
        lengths: number of tokens of each row; rows of length 0 are in no pass.
        limits: size and fixed cost of a pass.
        device: the device on which they are computed.

    Yields:
        The indices of the rows of each pass, and their result; the largest pass first.
    """
    # few rows are divided as well, so that two threads have work
    tokens = min(limits.tokens, max(4 * limits.overhead, -(-sum(lengths) // 2)))
    passes = group_by_length(lengths, limits._replace(tokens=tokens))
    passes.sort(key=lambda rows: len(rows) * lengths[rows[0]], reverse=True)  # the last ones end at about one time
    yield from zip(passes, in_parallel(compute, passes, device), strict=True)
