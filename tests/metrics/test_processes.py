"""Metrics over two processes with unequal shares of the rows equal those of one process, to the last digit."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed
from torch.multiprocessing.spawn import start_processes

from tests.metrics.evaluated import METRICS, Evaluated, evaluated, measured

BATCHES = [evaluated(size, seed=size) for size in (32, 32, 7, 19, 1)]
#: the batches of each process.
SHARES: dict[str, tuple[list[int], list[int]]] = {
    "unequal": ([0, 2, 4], [1, 3]),
    "one has nothing": ([0, 1, 2, 3, 4], []),
    "the other has nothing": ([], [0, 1, 2, 3, 4]),
}


def batches_of(share: list[int]) -> list[list[Evaluated]]:
    return [BATCHES[i] for i in share]


def measure(rank: int, folder: str) -> None:
    """Measures all metrics, on this process's batches and those of the other process."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=timedelta(minutes=2)
    )
    values = {
        f"{name}/{shares}": measured(name, batches_of(by_rank[rank]))
        for shares, by_rank in SHARES.items()
        for name in METRICS
    }
    Path(folder, f"{rank}.json").write_text(json.dumps(values))
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def synced(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, float]]:
    """The values of each process, by metric and shares."""
    folder = tmp_path_factory.mktemp("processes")
    start_processes(measure, args=(str(folder),), nprocs=2, start_method="fork")  # type: ignore[no-untyped-call]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize("shares", SHARES)
@pytest.mark.parametrize("name", METRICS)
def test_two_processes_measure_what_one_process_does(synced: list[dict[str, float]], name: str, shares: str) -> None:
    alone = measured(name, BATCHES)
    assert alone > 0
    assert [values[f"{name}/{shares}"] for values in synced] == [alone, alone]
    if name != "overhead":  # the share of a process alone is another value, so that this test can fail
        assert measured(name, batches_of(SHARES["unequal"][0])) != alone
