"""The shares of a machine's cores and GPUs that the workers of a grid have on it."""

from __future__ import annotations

import os
from collections.abc import Iterable

from lightning_backdoor.benchmark.fragments import Fragment, compose
from lightning_backdoor.benchmark.grid import Cell
from lightning_backdoor.errors import InputError

#: values of the trainer's ``accelerator`` that may use GPUs.
WITH_GPUS = (None, "auto", "gpu", "cuda")


def devices_of(cells: Iterable[Cell]) -> int:
    """The largest number of GPUs that the victims of some cells are trained or tested on; 1 if none gives a number."""
    trainers: list[Fragment] = []
    for cell in cells:
        trainers += [victim.config["trainer"] for victim in cell.victim.line]
        trainers.append(compose(trainers[-1], cell.config.get("trainer", {})))
    given = [str(trainer.get("devices")) for trainer in trainers if trainer.get("accelerator") in WITH_GPUS]
    return max((int(devices) for devices in given if devices.isdecimal()), default=1) or 1


def worker_environments(jobs: int, devices: int) -> list[dict[str, str]]:
    """Environment variables of each of several workers: its share of the cores, and GPUs of its own.

    Where there are several GPUs, each worker has as many as its cells use; if they use one, workers may share it.

    Args:
        jobs: number of workers.
        devices: number of GPUs that a cell uses.

    Raises:
        InputError: there are several GPUs, but too few for workers that use more than one.
    """
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    environment = {"OMP_NUM_THREADS": str(max(1, cores // jobs)), **os.environ}
    gpus = torch.cuda.device_count()
    if gpus < 2:
        return [{**environment} for _ in range(jobs)]
    if devices > 1 and jobs * devices > gpus:
        problem = f"{jobs} workers that use {devices} GPUs each are too many for {gpus} GPUs"
        fewer = f"give --jobs {gpus // devices}, or fewer" if gpus >= devices else "give fewer"
        raise InputError("jobs", problem, f"{fewer} trainer.devices")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(gpu) for gpu in range(gpus)]
    own = [names[i * devices : (i + 1) * devices] if devices > 1 else [names[i % gpus]] for i in range(jobs)]
    return [{**environment, "CUDA_VISIBLE_DEVICES": ",".join(names)} for names in own]
