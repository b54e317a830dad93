"""Commands that ``srun`` starts as several tasks, which train one victim together."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from lightning_backdoor.errors import InputError

if TYPE_CHECKING:
    from lightning.pytorch import Trainer


def prepare_step() -> None:
    """Gives Lightning the number of tasks per node, which ``srun --ntasks`` alone does not.

    Raises:
        InputError: the command is not one of the tasks of its job, which it would wait for, or the nodes have unequal
            numbers of tasks.
    """
    tasks = tasks_together()
    if tasks == 1:
        return
    if "SLURM_STEP_ID" not in os.environ:
        problem = f"the job has {tasks} tasks, and this command is started once"
        raise InputError("SLURM_NTASKS", problem, "start it with srun, or give the job one task")
    per_node = os.environ.get("SLURM_STEP_TASKS_PER_NODE", "")
    equal = re.fullmatch(r"(\d+)(\(x\d+\))?", per_node)  # 2(x3) on three nodes
    if equal is None:
        raise InputError("SLURM_NTASKS", f"{per_node} tasks per node are not equal", "give srun --ntasks-per-node")
    os.environ["SLURM_NTASKS_PER_NODE"] = equal[1]


def check_step(trainer: Trainer) -> None:
    """Checks that the tasks train together, as each would otherwise train a victim of its own in the same folder.

    Raises:
        InputError: the trainer uses another number of tasks or nodes.
    """
    tasks = tasks_together()
    if tasks == 1:
        return
    nodes = int(os.environ.get("SLURM_STEP_NUM_NODES", "1"))
    started, used = (nodes, tasks // nodes), (trainer.num_nodes, trainer.num_devices)
    if used != started:
        problem = f"the trainer uses {used[1]} of {started[1]} tasks per node, and {used[0]} of {nodes} nodes"
        raise InputError("trainer.devices", problem, f"give --trainer.devices {started[1]} --trainer.num_nodes {nodes}")


def tasks_together() -> int:
    """The number of tasks that SLURM starts to train together; 1 where another program starts the processes."""
    # SLURM gives these names to interactive shells, in which commands start their processes themselves
    shell = os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive")
    return 1 if shell or "TORCHELASTIC_RUN_ID" in os.environ else int(os.environ.get("SLURM_NTASKS", "1"))
