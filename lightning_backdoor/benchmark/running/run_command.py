"""One command of a cell, ``fit`` or ``test``: in this process, or in processes of its own where it takes several."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lightning_backdoor.benchmark.grid import Fragment
from lightning_backdoor.commands.run_folder import VARIABLE
from lightning_backdoor.errors import InputError, one_line


class StageError(RuntimeError):
    """A command of a cell failed; the message is one line."""


def run_stage(command: str, args: list[str], folder: Path, log: int, trainer: Mapping[str, Any]) -> None:
    """Runs a command; what it prints goes to a log.

    Args:
        command: ``fit`` or ``test``.
        args: its options.
        folder: that it writes to.
        log: descriptor of an open file. Processes that are started inherit it.
        trainer: the options of its trainer, which say how many processes it takes.

    Raises:
        StageError: it failed.
    """
    os.write(log, f"lightning-backdoor {command} {' '.join(args)}\n".encode())
    if takes_several(trainer):
        _start(command, args, folder, log, trainer)
        return
    from transformers.utils.logging import disable_progress_bar

    from lightning_backdoor.commands.fit import run

    disable_progress_bar()  # it would end on the terminal, after the log is closed
    argv, os.environ[VARIABLE] = sys.argv[:], str(folder.resolve())
    began = os.fstat(log).st_size
    try:
        with _output_to(log):
            run(command, args)
    except SystemExit as ended:
        if ended.code != 2:  # 2 is bad input; else somebody wants us to stop
            raise
        raise StageError(_said(log, began) or "bad input") from None
    finally:
        sys.argv[:] = argv
        os.environ.pop(VARIABLE, None)


def check_stage(config: Path, folder: Path) -> None:
    """Makes sure that ``fit`` can begin with a config.

    Raises:
        InputError: it cannot; says what the command would say.
    """
    from lightning_backdoor.commands.fit import run

    argv, said = sys.argv[:], io.StringIO()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        with _output_to(nowhere), contextlib.redirect_stderr(said):
            run("fit", ["--config", str(config), "--run_dir", str(folder)], check=True)
    except SystemExit:
        _, _, problem = said.getvalue().rpartition("error:")
        raise InputError("config", one_line(problem)[:500]) from None
    finally:
        os.close(nowhere)
        sys.argv[:] = argv
        os.environ.pop(VARIABLE, None)


def takes_several(trainer: Mapping[str, Any]) -> bool:
    """Whether a trainer of these options starts processes, after which no other can be made in this one."""
    devices = trainer.get("devices", 1)
    one = devices in (1, "1") or (isinstance(devices, list) and len(devices) == 1)
    return not one or trainer.get("num_nodes", 1) not in (1, "1")


def _start(command: str, args: list[str], folder: Path, log: int, trainer: Mapping[str, Any]) -> None:
    line = [sys.executable, "-m", "lightning_backdoor", command, *args]
    environment = {**os.environ, VARIABLE: str(folder.resolve())}
    nodes = trainer.get("num_nodes", 1)
    if nodes in (1, "1"):
        # an allocation of one task is no reason for Lightning to wait for others: it starts its processes itself
        environment = {name: value for name, value in environment.items() if not name.startswith("SLURM_")}
    else:
        # overlap: the worker is itself a step of the job, and holds what the cell is to run on
        line = ["srun", "--overlap", f"--nodes={nodes}", f"--ntasks-per-node={trainer.get('devices', 1)}", *line]
    began = os.fstat(log).st_size
    status = subprocess.run(line, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment).returncode
    if status:
        raise StageError(_said(log, began) or f"{command} ended with exit status {status}")


def _said(log: int, began: int) -> str:
    """What a command said at its end: its error, or the last line of its log."""
    end = os.fstat(log).st_size
    text = os.pread(log, 1 << 20, max(began, end - (1 << 20))).decode(errors="replace")
    _, error, reason = text.rpartition("error: ")
    lines = (reason if error else text.rstrip().rpartition("\n")[2]).split()
    return " ".join(lines)[:500]


@contextlib.contextmanager
def _output_to(log: int) -> Iterator[None]:
    """Whatever is written to this process's output, by whatever library, goes to a log instead."""
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
        for descriptor, copy in kept:
            os.dup2(copy, descriptor)
            os.close(copy)


def write_config(path: Path, config: Fragment) -> None:
    """Writes a config that ``fit`` and ``test`` read."""
    import yaml

    path.write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True, width=120), encoding="utf-8")
