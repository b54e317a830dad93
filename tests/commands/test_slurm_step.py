"""Tasks that srun starts: they train together or are refused, without SLURM."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import pytest

from lightning_backdoor.commands.slurm_step import check_step, prepare_step
from lightning_backdoor.errors import InputError


@pytest.fixture
def step(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The environment of one of four tasks on two nodes."""
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    tasks = {"NTASKS": "4", "STEP_ID": "0", "STEP_NUM_NODES": "2", "STEP_TASKS_PER_NODE": "2(x2)", "JOB_NAME": "fit"}
    for name, value in tasks.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "restored afterwards")
    monkeypatch.delenv("SLURM_NTASKS_PER_NODE")
    return monkeypatch


def trainer(nodes: int, devices: int) -> Any:
    return SimpleNamespace(num_nodes=nodes, num_devices=devices)


def test_the_tasks_per_node_are_counted(step: pytest.MonkeyPatch) -> None:
    prepare_step()
    assert os.environ["SLURM_NTASKS_PER_NODE"] == "2"
    check_step(trainer(2, 2))
    step.setenv("SLURM_STEP_TASKS_PER_NODE", "4")
    prepare_step()
    assert os.environ["SLURM_NTASKS_PER_NODE"] == "4"


@pytest.mark.parametrize(("nodes", "devices"), [(1, 1), (1, 4), (2, 1)])
def test_tasks_that_would_not_train_together_are_refused(step: pytest.MonkeyPatch, nodes: int, devices: int) -> None:
    problem = rf"uses {devices} of 2 tasks per node, and {nodes} of 2 nodes; give --trainer.devices 2 --trainer.num_n"
    with pytest.raises(InputError, match=problem):
        check_step(trainer(nodes, devices))


def test_unequal_nodes_are_refused(step: pytest.MonkeyPatch) -> None:
    step.setenv("SLURM_STEP_TASKS_PER_NODE", "3,1")
    with pytest.raises(InputError, match="3,1 tasks per node"):
        prepare_step()


def test_a_command_that_would_wait_for_tasks_that_nobody_starts_is_refused(step: pytest.MonkeyPatch) -> None:
    step.delenv("SLURM_STEP_ID")
    with pytest.raises(InputError, match="the job has 4 tasks, and this command is started once; start it with srun"):
        prepare_step()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SLURM_JOB_NAME", "interactive"),
        ("SLURM_JOB_NAME", "bash"),
        ("SLURM_NTASKS", "1"),
        ("TORCHELASTIC_RUN_ID", "1"),
    ],
)
def test_commands_that_start_their_processes_themselves_are_left_alone(
    step: pytest.MonkeyPatch, name: str, value: str
) -> None:
    step.setenv(name, value)
    step.delenv("SLURM_STEP_ID")
    prepare_step()
    check_step(trainer(1, 2))
    assert "SLURM_NTASKS_PER_NODE" not in os.environ
