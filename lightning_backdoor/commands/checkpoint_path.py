"""The checkpoint of a command: the file that ``ckpt_path`` names, found before Lightning looks for one itself."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import OnExceptionCheckpoint
from lightning_utilities.core.rank_zero import rank_zero_info

from lightning_backdoor.commands.run_folder import CHECKPOINTS, is_complete, launch_name
from lightning_backdoor.errors import InputError
from lightning_backdoor.files.bounded_yaml import read_bounded
from lightning_backdoor.files.names import expanded


class Complete(Exception):
    """``fit --ckpt_path last`` is given the folder of a run that is complete: nothing is left to train."""


def check_left(folder: Path, options: Any) -> None:
    """Checks that a run whose training is to go on is not complete.

    Args:
        folder: the run's folder.
        options: the trainer's options, ``max_epochs`` and ``max_steps`` among them.

    Raises:
        Complete: the run is complete, and no more epochs or steps are asked for than it was trained for.
        InputError: more are asked for, and the state of the optimizer was removed when the run was complete.
    """
    if not is_complete(folder):
        return
    before = yaml.safe_load(read_bounded(folder / "config.yaml"))["trainer"]
    if any(_limit(options.get(name)) > _limit(before.get(name)) for name in ("max_epochs", "max_steps")):
        problem = f"{folder} is complete, and its last.ckpt, from which training could go on, was removed"
        raise InputError("ckpt_path", problem, "train anew in another folder, with --keep_last true to extend it later")
    raise Complete(f"{folder} is complete; nothing is left to train")


def _limit(value: object) -> float:
    """A number of epochs or steps; a negative number, or none, is no limit."""
    return value if isinstance(value, int) and value >= 0 else math.inf


def resolve_checkpoint(given: str | None, command: str, folder: Path, run_dir: str | None) -> Path | None:
    """The file of a command's checkpoint.

    Lightning would also take keywords and addresses, and load a checkpoint that nobody gave in a job that SLURM has
    queued again. Here each becomes the path of a local file, which is checked like any other, or is refused.

    Args:
        given: the option ``ckpt_path``.
        command: ``fit``, ``validate``, ``test`` or ``predict``.
        folder: the folder that the command writes to.
        run_dir: the run's folder, where the command is given one.

    Returns:
        The path of an existing file; None for a training from its beginning.

    Raises:
        InputError: there is no such file, an address is not that of a local file, a keyword is given without a run's
            folder, or no checkpoint is given for the test of a run.
    """
    if given is None:
        requeued = _newest(folder) if SLURMEnvironment.detect() else None
        if command != "fit" and requeued is None and run_dir:
            best = Path(run_dir, CHECKPOINTS["best"])
            given = f"give --ckpt_path {best}" if best.is_file() else f"there is no {best}: train the run first"
            raise InputError("ckpt_path", "not given, and without it the run's victim is not evaluated", given)
        return requeued
    if given in CHECKPOINTS:
        found_again = run_dir or (command == "fit" and launch_name())  # any other folder of a fit is new
        return _of_run(given, command, (folder if command == "fit" else run_dir) if found_again else None)
    path = _local(given)
    if not path.is_file():
        best = path / CHECKPOINTS["best"]
        remedy = f"give {best}" if best.is_file() else "give a Lightning checkpoint"
        if (path / "config.json").is_file():
            remedy = f"give a published model by --model.model {given}, without ckpt_path"
        raise InputError("checkpoint", f"{given} is not a file", remedy)
    return path.resolve()  # Lightning would take a relative name such as httpd.ckpt for an address


def left_by_error(callbacks: Sequence[Callback]) -> Path | None:
    """The newest file that an ``OnExceptionCheckpoint`` left behind, from which Lightning would resume unasked."""
    paths = [Path(callback.ckpt_path) for callback in callbacks if isinstance(callback, OnExceptionCheckpoint)]
    left = [path.resolve() for path in paths if path.is_file()]
    return max(left, key=lambda path: path.stat().st_mtime, default=None)


def _of_run(keyword: str, command: str, run: Path | str | None) -> Path | None:
    """The checkpoint of a run that a keyword names."""
    if run is None:
        raise InputError("ckpt_path", f"{keyword!r} names a checkpoint of a run", "give --run_dir too, or a path")
    path = _newest(Path(run)) if keyword == "hpc" else Path(run, CHECKPOINTS[keyword])
    if path is not None and path.is_file():
        return path.resolve()
    if command == "fit" and keyword == "last":  # one command for the first start and all others
        rank_zero_info(f"{run} has no last.ckpt yet; training starts from the beginning")
        return None
    raise InputError("ckpt_path", f"{run} has no {CHECKPOINTS[keyword]}", "give a path")


def _newest(folder: Path) -> Path | None:
    """The newest checkpoint that Lightning wrote when SLURM announced the end of a job."""
    names = (re.fullmatch(r"hpc_ckpt_(\d{1,9})\.ckpt", path.name) for path in folder.glob(CHECKPOINTS["hpc"]))
    newest = max(filter(None, names), key=lambda name: int(name[1]), default=None)
    return None if newest is None else (folder / newest[0]).resolve()


def _local(given: str) -> Path:
    """The path of a local file, given as a path or as a ``file://`` address."""
    if not given or not given.isprintable():
        raise InputError("ckpt_path", f"{given!r} is not the name of a file", "give a Lightning checkpoint")
    scheme = re.match(r"([A-Za-z][\w+.-]*)(://|::)", given)
    if re.match(r"registry(:|$)", given, re.IGNORECASE) or (scheme and scheme[1].lower() != "file"):
        raise InputError("ckpt_path", f"{given} is not a local file", "download it, and give its path")
    if scheme is None:
        return Path(expanded(given))
    address = urlsplit(given)
    if scheme[2] == "::" or address.netloc not in ("", "localhost"):
        raise InputError("ckpt_path", f"{given} is not a local file", "give its path")
    return Path(unquote(address.path))
