"""Where a run writes: one folder a run, agreed on by all of its processes."""

from __future__ import annotations

import os
import secrets
import time
from pathlib import Path

from lightning_backdoor.errors import InputError

#: processes that a run starts of its own inherit the folder through this variable.
VARIABLE = "LIGHTNING_BACKDOOR_RUN"


def output_folder(command: str, run_dir: str | None, name: str, resume: bool) -> Path:
    """The folder that a command writes to, not made yet, and remembered for the processes it will start.

    ``fit`` writes to the run's folder itself; other commands to a folder of their own in it (``test``, ``test-2``...),
    so that nothing written before is lost.

    Args:
        command: ``fit``, ``validate``, ``test`` or ``predict``.
        run_dir: the run's folder; None makes one in ``runs/`` of the name and the time.
        name: of the victim, for the folder's name.
        resume: whether ``fit`` goes on from a checkpoint and so may write to a folder that holds a run.

    Raises:
        InputError: the folder holds a run already, or processes started by torchrun could not agree on a folder.
    """
    if VARIABLE in os.environ:
        return Path(os.environ[VARIABLE])
    folder = Path(run_dir) if run_dir else _new(Path("runs", f"{name}-{_shared_stamp()}"))
    if command != "fit":
        folder = _new(folder / command)
    elif (folder / "config.yaml").exists() and not resume:
        raise InputError(f"run_dir: {folder} holds a run already; go on with --ckpt_path or give another folder")
    os.environ[VARIABLE] = str(folder.resolve())
    return folder.resolve()


def _shared_stamp() -> str:
    """The time, or what all processes of an outside launcher know."""
    if "SLURM_JOB_ID" in os.environ:
        return "-".join(os.environ.get(name, "0") for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    if "TORCHELASTIC_RUN_ID" in os.environ:
        raise InputError("run_dir: processes started by torchrun need one folder in common; give --run_dir")
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"  # two runs may start in the same second


def _new(folder: Path) -> Path:
    if "SLURM_JOB_ID" in os.environ:
        return folder  # every process must come to the same name, whichever is first
    free, count = folder, 1
    while free.exists():
        count += 1
        free = folder.with_name(f"{folder.name}-{count}")
    return free
