"""The processes of a scan: one, or several that Lightning starts, of which the first reads, writes and speaks."""

from __future__ import annotations

import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from itertools import islice
from typing import Any, TypeVar

import torch

from lightning_backdoor.commands.launch import check_cores, waiting_text
from lightning_backdoor.errors import Diverged, InputError, reason

Result = TypeVar("Result")
#: how long a process waits for the others, such as for texts from a slow standard input.
PATIENCE = timedelta(days=30)


class Processes:
    """One process, which does everything itself.

    Attributes:
        alone: whether it is the only one.
        first: whether this is the process that reads the texts and writes the lines.
        device: the device of this process.
    """

    alone = True
    first = True

    def __init__(self) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def same(self, value: Result) -> Result:
        """The value of the first process, in every process; every process must call it."""
        return value

    def map(self, function: Callable[[list[str]], Result], groups: Iterator[list[str]]) -> Iterator[Result]:
        """Yields the results of a function for groups of texts, in the order of the groups; called by the first."""
        return map(function, groups)

    def serve(self, function: Callable[[list[str]], Any]) -> None:
        """Computes the function for the groups that the first process sends; called by the others."""


class SeveralProcesses(Processes):
    """Processes of PyTorch's default process group; each takes the next group of texts in turn.

    A result is pickled, and may be an error, which the first process raises.

    Args:
        rank: number of this process.
        count: number of all processes.
        device: the device of this process.
    """

    alone = False

    def __init__(self, rank: int, count: int, device: torch.device) -> None:
        self.first = rank == 0
        self.count = count
        self.device = device

    def same(self, value: Result) -> Result:
        values = [value]
        with nullcontext() if self.first else _ending_with_the_first():
            torch.distributed.broadcast_object_list(values, src=0)
        return values[0]

    def map(self, function: Callable[[list[str]], Result], groups: Iterator[list[str]]) -> Iterator[Result]:
        bad_input: InputError | None = None
        while bad_input is None:
            groups_now: list[list[str]] = []
            try:
                groups_now.extend(islice(groups, self.count))
            except InputError as error:
                bad_input = error
            if not groups_now:
                break
            own = self._exchange([*groups_now, *[[]] * (self.count - len(groups_now))])
            results: list[Any] = [None] * self.count
            torch.distributed.gather_object(_result(function, own), results)
            for result in results[: len(groups_now)]:
                if isinstance(result, BaseException):
                    raise result
                yield result
        self._exchange([None] * self.count)
        if bad_input is not None:
            raise bad_input

    def serve(self, function: Callable[[list[str]], Any]) -> None:
        with _ending_with_the_first():
            while (texts := self._exchange(None)) is not None:
                torch.distributed.gather_object(_result(function, texts))

    @staticmethod
    def _exchange(groups: Sequence[list[str] | None] | None) -> list[str] | None:
        received: list[list[str] | None] = [None]
        torch.distributed.scatter_object_list(received, groups)  # type: ignore[arg-type]
        return received[0]


def _result(function: Callable[[list[str]], Any], texts: list[str] | None) -> Any:
    """The function's result or error; None for a process that has no texts in a round."""
    try:
        return function(texts) if texts else None
    except (InputError, Diverged) as error:
        return error
    except Exception:  # it may not be one that can be pickled
        return RuntimeError(traceback.format_exc())


@contextmanager
def processes(devices: str, nodes: int, args: Sequence[str]) -> Iterator[Processes]:
    """Starts the processes of a scan, or joins those that a scheduler has started.

    Args:
        devices: number of devices per node, as the user wrote it, or ``auto`` for all.
        nodes: number of nodes.
        args: the options of the command, which the other processes run as well.

    Raises:
        InputError: the machine does not have the devices.
    """
    if devices == "1" and nodes == 1:
        yield Processes()
        return
    from lightning.fabric import Fabric
    from lightning.fabric.strategies.ddp import DDPStrategy

    for name in ("lightning.fabric", "lightning.pytorch"):  # which of them speaks depends on what is imported last
        logging.getLogger(name).setLevel(logging.WARNING)
    # gloo, since processes exchange texts and lines, not tensors
    strategy = DDPStrategy(process_group_backend="gloo", timeout=PATIENCE)
    before, argv, threads = dict(os.environ), sys.argv[:], torch.get_num_threads()
    sys.argv[1:] = ["scan", *args]  # what the processes that Lightning starts run
    try:
        try:
            fabric = Fabric(
                devices=int(devices) if devices.isdecimal() else devices, num_nodes=nodes, strategy=strategy
            )
            check_cores("devices", fabric.device, fabric.world_size // nodes)
            sys.stderr.write(waiting_text(strategy.cluster_environment, nodes))
            fabric.launch()
            torch.set_num_threads(threads)  # the last digit of a result may depend on it
        except InputError:
            raise
        except Exception as error:  # Lightning's and PyTorch's errors in many types
            raise InputError("devices", f"{devices}: {reason(error)}", "give fewer, or see --help") from None
        several = SeveralProcesses(fabric.global_rank, fabric.world_size, fabric.device)
        try:
            if several.first:
                with _ending_others(getattr(fabric.strategy.launcher, "procs", [])):
                    yield several
            else:
                with _quiet():
                    yield several
        finally:  # after an error too: threads of the group that still run when Python ends may abort it
            torch.distributed.destroy_process_group()
    finally:
        sys.argv[:] = argv
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def _ending_others(started: Sequence[Any]) -> Iterator[None]:
    """Ends the processes that this one has started if the block ends with an error, since they would wait forever."""
    try:
        yield
    except BaseException:
        for process in started:
            process.terminate()
        raise


@contextmanager
def _quiet() -> Iterator[None]:
    """Ends this process without a word where the first one ends for the same reason, which it says."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: os._exit(0))
    try:
        yield
    except InputError:
        raise SystemExit(0) from None


@contextmanager
def _ending_with_the_first() -> Iterator[None]:
    """Ends this process if the connection to the first one is lost, since it has ended and said why."""
    try:
        yield
    except RuntimeError:
        raise SystemExit(0) from None
