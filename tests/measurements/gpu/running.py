"""Parts of a GPU day in processes of their own, each within its time: one that fails or hangs costs itself alone."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

import torch

from lightning_backdoor.errors import reason
from tests.measurements.gpu.report import Ended, Report, Row
from tests.measurements.gpu.setting import Setting, Skipped, machine
from tests.measurements.gpu.timing import PeakMemory

#: seconds that a process may take to import the libraries and reach the device.
STARTING = 60.0
#: seconds below which no further part is begun.
LEAST = 10.0

Send = Callable[[tuple[str, Any]], None]


class Part(NamedTuple):
    """One part.

    Attributes:
        measure: the measurements; rows are reported as they come.
        seconds: that it may take at most.
    """

    measure: Callable[[Setting], Iterator[Row]]
    seconds: float


def measure_parts(parts: Mapping[str, Part], setting: Setting, send: Send) -> None:
    """Measures parts in turn in this process, up to and including the first that fails.

    Args:
        parts: the parts by name.
        setting: device and sizes.
        send: is given ``("machine", facts)``, and for each part ``("begun", name)``, ``("row", row)`` and ``("ended",
            Ended)``.
    """
    send(("machine", machine(setting)))
    for name, part in parts.items():
        send(("begun", name))
        on_gpu = setting.device == "cuda"
        if on_gpu:
            PeakMemory.forget()
        try:
            for row in part.measure(setting):
                send(("row", row))
            ended = Ended("measured")
        except Skipped as skipped:
            ended = Ended("skipped", str(skipped))
        except Exception as error:
            traceback.print_exc()
            ended = Ended("failed", f"{type(error).__name__}: {reason(error, 200)}")
        if on_gpu:
            gc.collect()
            ended = ended._replace(memory=PeakMemory.reached())
            torch.cuda.empty_cache()
        send(("ended", ended))
        if ended.status == "failed":  # after some errors of a GPU everything else in the process fails too
            return


def run_here(parts: Mapping[str, Part], setting: Setting, report: Report) -> None:
    """Measures all parts in this process, without limits of time."""
    left = dict(parts)

    def send(event: tuple[str, Any]) -> None:
        take(event, next(iter(left), ""), report)
        if event[0] == "ended":
            del left[next(iter(left))]

    while left:
        measure_parts(dict(left), setting, send)


def run_apart(
    parts: Mapping[str, Part], setting: Setting, report: Report, seconds: float, start: str = "spawn"
) -> None:
    """Measures all parts in other processes: in one, and in a new one after each part that failed or was cut.

    Args:
        parts: the parts by name.
        setting: device and sizes.
        report: takes the results.
        seconds: that all parts together may take; what is not begun by then is reported as cut.
        start: how processes are started, see :mod:`multiprocessing`.
    """
    end = time.monotonic() + seconds
    left = dict(parts)
    while left and end - time.monotonic() >= LEAST:
        _run_worker(left, setting, report, end, start)
    for name in left:
        report.end(name, Ended("cut", f"not begun: the {seconds:.0f} seconds of all parts were over"))


def _run_worker(left: dict[str, Part], setting: Setting, report: Report, end: float, start: str) -> None:
    """Takes the results of one process, and what has ended out of ``left``, until a part fails or is cut."""
    context = multiprocessing.get_context(start)
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(dict(left), setting, sender))  # type: ignore[attr-defined]
    process.start()
    sender.close()
    begun, allowed = time.monotonic(), STARTING
    try:
        while left:
            name = next(iter(left))
            if not receiver.poll(max(0.0, min(begun + allowed, end) - time.monotonic())):
                taken = time.monotonic() - begun
                report.end(left_out(left), Ended("cut", f"not finished after {taken:.0f} seconds"))
                return
            try:
                event = receiver.recv()
            except EOFError:
                process.join(5)
                report.end(left_out(left), Ended("failed", f"its process ended with status {process.exitcode}"))
                return
            take(event, name, report)
            if event[0] == "begun":
                begun, allowed = time.monotonic(), left[name].seconds
            elif event[0] == "ended":
                left_out(left)
                begun, allowed = time.monotonic(), STARTING
                if event[1].status == "failed":
                    return
    finally:
        end_process(process)


def left_out(left: dict[str, Part]) -> str:
    """Removes the first part; returns its name."""
    name = next(iter(left))
    del left[name]
    return name


def take(event: tuple[str, Any], part: str, report: Report) -> None:
    """Puts an event into the report, and a line about it on standard output."""
    kind, value = event
    if kind == "machine":
        report.describe(value)
    elif kind == "begun":
        report.begin(value)
    elif kind == "row":
        report.add(part, value)
        ratio = "" if value.ratio is None else f", ratio {value.ratio:.3f}"
        sys.stdout.write(f"{part}: {value.title}, {value.precision}: {value.value:.4g} {value.unit}{ratio}\n")
    elif kind == "ended":
        report.end(part, value)
        if value.status != "measured":
            sys.stdout.write(f"{part}: {value.status}: {value.reason}\n")
    sys.stdout.flush()


def _work(parts: dict[str, Part], setting: Setting, sender: Connection) -> None:
    """The process of the parts: a group of its own, whose output goes into the log."""
    os.setsid()
    with Path(setting.log).open("a", buffering=1, encoding="utf-8") as log:
        for descriptor in (1, 2):
            os.dup2(log.fileno(), descriptor)
        sys.stdout = sys.stderr = log
        measure_parts(parts, setting, sender.send)


def end_process(process: BaseProcess) -> None:
    """Ends a process and all that it has started."""
    assert process.pid is not None
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:  # it has ended, or has no group yet
        process.kill()
    process.join()
