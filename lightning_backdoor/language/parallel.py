"""Independent parts of a computation on a processor, each on threads of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

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
