"""Times and memory of calls on a GPU, whose work is waited for before and after."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from tests.measurements.gpu.report import Row
from tests.measurements.gpu.setting import Setting
from tests.measurements.pairs import alternate

#: seconds that a measurement takes at least: shorter calls are repeated.
SHORTEST = 0.1

Run = Callable[[], Any]


def wait(device: str) -> None:
    """Waits until the device has done all work that was given to it."""
    if device != "cpu":
        torch.accelerator.synchronize()


def seconds(run: Run, device: str, calls: int = 1) -> float:
    """Seconds per call, of several calls in a row; includes the time in which Python prepares them."""
    wait(device)
    started = time.perf_counter()
    for _ in range(calls):
        run()
    wait(device)
    return (time.perf_counter() - started) / calls


def warmed_up(run: Run, setting: Setting) -> int:
    """Calls a function, which compiles kernels and allocates memory; returns the calls to make per measurement."""
    run()
    return 1 if setting.toy else max(1, round(SHORTEST / seconds(run, setting.device)))


def median_seconds(run: Run, setting: Setting) -> float:
    """The median seconds per call, warm-up left out."""
    calls = warmed_up(run, setting)
    return statistics.median(seconds(run, setting.device, calls) for _ in range(setting.rounds))


class PeakMemory:
    """GPU memory in MiB, as torch counts it, at the peak of a part; parts reset torch's own count."""

    highest = 0.0

    @classmethod
    def forget(cls) -> None:
        torch.cuda.reset_peak_memory_stats()
        cls.highest = 0.0

    @classmethod
    def reached(cls) -> float:
        """The peak since :meth:`forget`."""
        cls.highest = max(cls.highest, torch.cuda.max_memory_allocated() / 2**20)
        return cls.highest


def added_memory(run: Run, device: str) -> float | None:
    """MiB of GPU memory that a call adds at its peak; None without a GPU."""
    if device == "cpu":
        return None
    wait(device)
    PeakMemory.reached()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    wait(device)
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def compared(title: str, library: Run, reference: Run, setting: Setting, **more: Any) -> Row:
    """A row that compares the times of two calls, in paired rounds.

    Args:
        title: what is compared with what.
        library: the library's call.
        reference: the other call.
        setting: device and number of pairs.
        **more: further attributes of the row.
    """
    device = setting.device
    calls = [warmed_up(run, setting) for run in (library, reference)]
    sides = (lambda: seconds(library, device, calls[0]), lambda: seconds(reference, device, calls[1]))
    pairs = list(alternate(*sides, setting.rounds))
    return Row(
        title,
        "s",
        statistics.median(pair.library for pair in pairs),
        reference=statistics.median(pair.reference for pair in pairs),
        ratio=statistics.median(pair.library / pair.reference for pair in pairs),
        rounds=setting.rounds,
        memory=added_memory(library, device),
        reference_memory=added_memory(reference, device),
        **more,
    )


@contextmanager
def precision(name: str, device: str) -> Iterator[None]:
    """Computes in ``float32``, ``tf32`` or ``bf16-mixed`` within the block.

    ``float32`` is full float32, as by default: products of matrices do not use TF32. The block should not hold more
    than one training step, since autocast converts weights once per block.
    """
    before = torch.get_float32_matmul_precision()
    with ExitStack() as stack:
        stack.callback(torch.set_float32_matmul_precision, before)
        torch.set_float32_matmul_precision("high" if name == "tf32" else "highest")
        if name == "bf16-mixed":
            stack.enter_context(torch.autocast(device, torch.bfloat16))
        yield
