"""What is checked and said before a command starts processes: the cores of the machine, and the other machines."""

from __future__ import annotations

import os

import torch
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment

from lightning_backdoor.errors import InputError


def check_cores(field: str, device: torch.device, processes: int) -> None:
    """Checks that a machine without a GPU has a core for each process.

    Args:
        field: the option that gives the number.
        device: the device of this process.
        processes: number of processes on this machine.

    Raises:
        InputError: there are more processes than cores.
    """
    cores = os.cpu_count() or processes
    if device.type == "cpu" and processes > cores:
        problem = f"{processes} processes are more than the {cores} cores of this machine"
        raise InputError(field, problem, f"give at most {cores}")


def waiting_text(environment: ClusterEnvironment | None, nodes: int) -> str:
    """What a command waits for whose processes on other machines nobody but the user starts; empty otherwise.

    Args:
        environment: of Lightning's strategy.
        nodes: number of machines.
    """
    started = "LOCAL_RANK" in os.environ  # by another process
    if nodes == 1 or started or not isinstance(environment, LightningEnvironment):
        return ""
    return (
        f"waiting for {nodes} machines at {environment.main_address}:{environment.main_port}: start the same command on"
        f" each, with one MASTER_ADDR and MASTER_PORT, and with NODE_RANK from 0 to {nodes - 1}\n"
    )
