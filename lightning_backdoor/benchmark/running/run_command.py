"""Running ``fit`` and ``test`` for a grid, in this process, or in new processes if the trainer uses several."""

from __future__ import annotations

import contextlib
import copy
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_backdoor.benchmark.fragments import Fragment, compose, yaml_text
from lightning_backdoor.benchmark.grid import Cell, PlannedVictim
from lightning_backdoor.commands.quick_imports import quick_imports
from lightning_backdoor.commands.run_folder import VARIABLE
from lightning_backdoor.commands.signals import as_part_of_another
from lightning_backdoor.errors import InputError, one_line

if TYPE_CHECKING:  # importing torch takes seconds
    from lightning_backdoor.commands.session import Session
    from lightning_backdoor.data.kept import Kept

#: time that the processes of a command have to end after a signal, in seconds.
ENDING_SECONDS = 5.0


class CommandError(RuntimeError):
    """A command of a grid failed; the message is one line."""


def run_command(
    command: str,
    args: list[str],
    folder: Path,
    log: int,
    trainer: Mapping[str, Any],
    session: Session | None = None,
) -> None:
    """Runs a command with its output redirected to a log.

    Args:
        command: ``fit`` or ``test``.
        args: options of the command.
        folder: the folder that the command writes to.
        log: descriptor of an open file, which started processes inherit.
        trainer: options of the trainer, which determine the number of processes.
        session: for ``test`` in this process: what earlier tests of the same victim have left.

    Raises:
        CommandError: the new processes failed. In this process, errors are raised unchanged.
    """
    os.write(log, f"lightning-backdoor {command} {' '.join(args)}\n".encode(errors="backslashreplace"))
    start = os.fstat(log).st_size
    if _takes_several_processes(trainer):
        status = _run_in_processes([command, *args], folder, log, trainer)
        if status:
            raise CommandError(_last_message(log, start) or f"{command} ended with exit status {status}")
        return
    with quick_imports():
        from lightning_backdoor.commands.fit import run

    os.environ[VARIABLE] = str(folder.resolve())
    tasks = os.environ.pop("SLURM_NTASKS", None)  # Lightning would wait for the other tasks of the job
    try:
        with _output_to(log), as_part_of_another():
            run(command, args, session)
    finally:
        os.environ.pop(VARIABLE, None)
        if tasks is not None:
            os.environ["SLURM_NTASKS"] = tasks


def check_cell(cell: Cell, kept: Kept) -> None:
    """Checks that the training and the test of a cell can start: that classes exist and accept their arguments.

    What is read in the checks of earlier cells, ``kept``, is not read again.

    The trainings of the victim's parents are checked as well. Parents may have no checkpoints yet: a repair is checked
    as a training from scratch, and of a data defense that uses a victim only the arguments are checked.

    Raises:
        InputError: the training or the test cannot start; the message is the command's.
    """
    for victim in cell.victim.line:
        if victim.checkpoint:
            _check_checkpoint(victim.checkpoint, kept)
    for parent in cell.victim.line[:-1]:
        _check_fit(parent, parent.config, kept)
    _check_fit(cell.victim, compose(cell.victim.config, cell.config), kept)


def _check_fit(victim: PlannedVictim, config: Fragment, kept: Kept) -> None:
    with quick_imports():
        from lightning_backdoor.commands.fit import check

    config = copy.deepcopy(config)
    part, argument = victim.parent_argument
    if part:
        del config[part]["init_args"][argument]
        if part == "data":
            _check_data_defense(config[part]["init_args"].pop("data_defense", None))
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, "config.yaml")
        path.write_text(yaml_text(config), encoding="utf-8")
        with Path(os.devnull).open("wb") as nowhere, _output_to(nowhere.fileno()):
            check(["--config", str(path), "--run_dir", str(Path(scratch, "run"))], kept, bool(victim.checkpoint))


def _check_checkpoint(path: str, kept: Kept) -> None:
    """Checks that a checkpoint is a trained classifier, which loads without running code."""
    from lightning_backdoor.victim.checkpoints import read_trained

    try:
        kept.get(f"checkpoint {path}", path, lambda: read_trained(path))
    except InputError as error:
        raise error.under("checkpoint") from None


def _check_data_defense(defense: Any) -> None:
    from jsonargparse import ArgumentError, ArgumentParser

    from lightning_backdoor.data.cleaning import DataDefense

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--data_defense", type=DataDefense)
    try:
        parser.instantiate_classes(parser.parse_object({"data_defense": defense}))
    except ArgumentError as error:
        raise InputError("data_defense", one_line(str(error))[:500]) from None


def _takes_several_processes(trainer: Mapping[str, Any]) -> bool:
    """Whether a trainer with these options starts processes, after which this process cannot create another trainer."""
    devices = trainer.get("devices", 1)
    single = devices in (1, "1") or (isinstance(devices, list) and len(devices) == 1)
    return not single or trainer.get("num_nodes", 1) not in (1, "1")


def _run_in_processes(command: list[str], folder: Path, log: int, trainer: Mapping[str, Any]) -> int:
    """Runs a command in new processes, on several nodes by ``srun``; returns its exit status."""
    line = [sys.executable, "-P", "-m", "lightning_backdoor", *command]
    environment = {**os.environ, VARIABLE: str(folder.resolve())}
    nodes = trainer.get("num_nodes", 1)
    if nodes in (1, "1"):
        # in an allocation of one task, Lightning would wait for other tasks instead of starting its processes
        environment = {name: value for name, value in environment.items() if not name.startswith("SLURM_")}
    else:
        # overlap: the worker is itself a step of the job and holds the resources that the command needs
        line = ["srun", "--overlap", f"--nodes={nodes}", f"--ntasks-per-node={trainer.get('devices', 1)}", *line]
    # a group of its own, since a process that trains with others starts them and may end before them
    process = subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, process_group=0)
    try:
        return process.wait()
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends what is left of a process and its group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=ENDING_SECONDS)
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _last_message(log: int, start: int) -> str:
    """The error that a command printed at its end, or the last line of its log."""
    end = os.fstat(log).st_size
    text = os.pread(log, 1 << 20, max(start, end - (1 << 20))).decode(errors="replace")
    errors = re.findall(r"^error: (.*)$", text, re.MULTILINE)  # srun adds errors of its own, which begin otherwise
    return one_line(errors[-1] if errors else text.rstrip().rpartition("\n")[2])[:500]


@contextlib.contextmanager
def _output_to(log: int) -> Iterator[None]:
    """Redirects all output of this process to a log, whichever library writes it."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [(descriptor, os.dup(descriptor)) for descriptor in (1, 2)]
    for descriptor, _ in kept:
        os.dup2(log, descriptor)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for descriptor, copied in kept:
            os.dup2(copied, descriptor)
            os.close(copied)
