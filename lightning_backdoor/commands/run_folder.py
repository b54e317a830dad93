"""The output folder of a command, the same in all its processes."""

from __future__ import annotations

import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lightning_backdoor.commands.slurm_step import tasks_together
from lightning_backdoor.errors import InputError
from lightning_backdoor.files.locking import lock
from lightning_backdoor.files.names import check_folder, check_name

#: environment variable through which the processes that a command starts inherit its folder.
VARIABLE = "LIGHTNING_BACKDOOR_RUN"
#: the checkpoints of a run in its folder, by the values of ``ckpt_path`` that name them.
CHECKPOINTS = {"best": "checkpoints/best.ckpt", "last": "checkpoints/last.ckpt", "hpc": "hpc_ckpt_*.ckpt"}
#: where checkpoints of a run lie, also those of a ``ModelCheckpoint`` among its options.
OF_TRAINING = ("checkpoints/*.ckpt", "logs/*/checkpoints/*.ckpt", CHECKPOINTS["hpc"])
#: the names of the files that a command has written before anything is trained or evaluated.
FIRST_FILES = {"config.yaml", "hparams.yaml", "run.lock"}


def output_folder(command: str, run_dir: str | None, name: str, resume: bool) -> Path:
    """Chooses the output folder of a command, and stores it in ``VARIABLE`` for the processes that it starts.

    The folder is not created. ``fit`` writes to the run's folder itself; each other command to a new folder in it
    (``test``, ``test-2``, ...), so that nothing written before is lost. Processes that SLURM or torchrun start cannot
    look for a free name, since one of them may already have made its folder: their folders are named after the launch.

    Args:
        command: ``fit``, ``validate``, ``test`` or ``predict``.
        run_dir: the run's folder; None takes a folder in ``runs/`` named after the victim and the time.
        name: name of the victim's class.
        resume: whether ``fit`` resumes from a checkpoint and so may write to a folder that holds a run.

    Returns:
        The absolute path.

    Raises:
        InputError: the folder holds a run already, or processes started by torchrun have no launch name in common.
    """
    if VARIABLE in os.environ:
        return Path(os.environ[VARIABLE])
    folder = Path(run_dir) if run_dir else _new(Path("runs", name), stamp=_time())
    check_folder(folder, "run_dir")
    if command != "fit":
        folder = _new(folder / command)
    else:
        check_holds_no_run(folder, resume)
    os.environ[VARIABLE] = str(folder.resolve())
    return folder.resolve()


def check_holds_no_run(folder: Path, resume: bool) -> None:
    """Checks that ``fit`` may write to a folder. What a start left that failed before any training is replaced.

    Raises:
        InputError: it holds a checkpoint of a run that is not resumed, and SLURM has not queued this job again; or a
            ``model``, which the export would replace.
    """
    if (folder / "model").exists() and not (folder / "config.yaml").exists():
        raise InputError("run_dir", f"{folder} holds a model that is not of a run", "give another folder")
    if resume or "SLURM_RESTART_COUNT" in os.environ:
        return
    trained = [path for pattern in OF_TRAINING for path in folder.glob(pattern)]
    if trained or (folder / "model").exists():
        resumed = Path(folder, CHECKPOINTS["last"]) in trained
        remedy = "resume it with --ckpt_path last, or give another folder" if resumed else "give another folder"
        raise InputError("run_dir", f"{folder} holds a run already", remedy)


def is_complete(folder: Path) -> bool:
    """Whether a folder holds a run that is trained and exported, and from which training cannot go on."""
    best, last = (Path(folder, CHECKPOINTS[name]) for name in ("best", "last"))
    return best.is_file() and (folder / "model").is_dir() and not last.exists()


@contextmanager
def removed_if_failed(folder: Path, only_new: bool = False) -> Iterator[None]:
    """Creates a folder; removes it if the block raises an error before it writes more than its config and logs' heads.

    A folder that exists is left as it is, and so is the folder of a command that is interrupted.

    Args:
        folder: what :func:`output_folder` has chosen.
        only_new: whether a folder that exists is refused, since another command has taken its name in the meantime.

    Raises:
        InputError: it is refused.
    """
    new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=not only_new)
    except FileExistsError:
        if not only_new:
            raise
        problem = f"another command has begun to write to {folder}"
        raise InputError("run_dir", problem, "start this one again, and it takes the next name") from None
    try:
        yield
    except Exception:
        if new and {path.name for path in folder.rglob("*") if not path.is_dir()} <= FIRST_FILES:
            shutil.rmtree(folder, ignore_errors=True)
        raise


@contextmanager
def only_fit(folder: Path, resume: bool) -> Iterator[None]:
    """Keeps other processes from training in a folder within the block, also if they start at the same moment.

    The lock on ``run.lock`` in the folder is released when the process ends, however it ends.

    Args:
        folder: the run's folder, which exists.
        resume: see :func:`output_folder`.

    Raises:
        InputError: another process trains in the folder, or has done so in the meantime.
    """
    with (folder / "run.lock").open("ab") as file:
        if not lock(file, wait=False, field="run_dir"):
            raise InputError("run_dir", f"another process trains in {folder}", "wait for it, or give another folder")
        check_holds_no_run(folder, resume)
        yield


def _new(folder: Path, stamp: str = "") -> Path:
    """A folder that does not exist: the name with the stamp, and with a number if needed."""
    launch = launch_name()
    if launch:
        return folder.with_name(f"{folder.name}-{launch}")
    first = new = folder.with_name(f"{folder.name}-{stamp}" if stamp else folder.name)
    number = 1
    while new.exists():
        number += 1
        new = first.with_name(f"{first.name}-{number}")
    return new


def launch_name() -> str | None:
    """A name shared by the processes of one launch and by no other launch; None for a single process."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        launch = os.environ.get("TORCHELASTIC_RUN_ID", "none")
        check_name(launch, "rdzv-id")
        if launch == "none":  # torchrun's default
            raise InputError(
                "run_dir",
                "processes started together need a launch name for a new folder",
                "start them with torchrun --rdzv-id NAME or --standalone (fit also takes --run_dir)",
            )
        return launch
    if tasks_together() > 1 and "SLURM_STEP_ID" in os.environ:
        return f"{os.environ['SLURM_JOB_ID']}-{os.environ['SLURM_STEP_ID']}"
    return None


def _time() -> str:
    """The time, followed by random digits."""
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(4)}"  # two runs may start in the same second
