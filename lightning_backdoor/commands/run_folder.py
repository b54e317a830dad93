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
    so that nothing written before is lost. Processes that SLURM or torchrun start cannot look what is there, since
    one of them may be ahead of the others: their folders are named by what all of them know of their launch.

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
    folder = Path(run_dir) if run_dir else _new(Path("runs", name), stamp=_time())
    if command != "fit":
        folder = _new(folder / command)
    elif (folder / "config.yaml").exists() and not resume and "SLURM_RESTART_COUNT" not in os.environ:
        raise InputError("run_dir", f"{folder} holds a run already", "go on with --ckpt_path or give another folder")
    os.environ[VARIABLE] = str(folder.resolve())
    return folder.resolve()


def _new(folder: Path, stamp: str = "") -> Path:
    """A folder that is not there yet: the name and the stamp, and a number where these are taken."""
    launch = _launch()
    if launch:
        return folder.with_name(f"{folder.name}-{launch}")
    first = free = folder.with_name(f"{folder.name}-{stamp}" if stamp else folder.name)
    count = 1
    while free.exists():
        count += 1
        free = first.with_name(f"{first.name}-{count}")
    return free


def _launch() -> str | None:
    """What processes that were started together know of their launch, and no other launch does; None for one alone."""
    if _number("WORLD_SIZE") > 1:
        launch = os.environ.get("TORCHELASTIC_RUN_ID", "none")
        if launch == "none":  # so torchrun names it where nobody does
            raise InputError(
                "run_dir",
                "processes started together need one name in common for a new folder",
                "start them with torchrun --rdzv-id NAME or --standalone (fit also takes --run_dir)",
            )
        return launch
    # shells that SLURM gives out are named so; what is started in them starts its processes itself
    shell = os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive")
    if _number("SLURM_NTASKS") > 1 and "SLURM_STEP_ID" in os.environ and not shell:
        return f"{os.environ['SLURM_JOB_ID']}-{os.environ['SLURM_STEP_ID']}"
    return None


def _number(variable: str) -> int:
    return int(os.environ.get(variable, "1"))


def _time() -> str:
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(4)}"  # two runs may start in the same second
