"""Commands in forks of this process, which has imported the libraries already; in all else as in a new process."""

from __future__ import annotations

import logging
import multiprocessing
import os
import sys
from collections.abc import Mapping
from multiprocessing.context import ForkProcess
from pathlib import Path
from socket import socket
from subprocess import CompletedProcess
from tempfile import TemporaryDirectory

from lightning_backdoor.cli import main
from lightning_backdoor.commands.run_folder import VARIABLE
from tests.support.workspace import settings

#: fork, with which a process begins at once; the tests use no GPU and compute on one thread.
FORK = multiprocessing.get_context("fork")
#: options of a trainer with two processes.
TWO = ("--trainer.devices", "2", "--trainer.strategy", "ddp")
SECONDS = 300


def forked(*args: str, cwd: Path, env: Mapping[str, str] | None = None) -> CompletedProcess[str]:
    """Runs ``lightning-backdoor`` in a folder, in a fork of this process.

    :func:`tests.support.workspace.command` starts the installed command instead, for tests of the start itself.
    """
    (result,) = _run([list(args)], cwd, [env or {}])
    return result


def forked_pair(*args: str, cwd: Path, folder: Path) -> list[CompletedProcess[str]]:
    """Runs a command in two processes that work together, each as Lightning's launcher starts its second.

    Args:
        *args: the command and its options.
        cwd: the working directory.
        folder: what the command writes to; the first of two processes leaves its name to the second.
    """
    with socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    launch = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "NODE_RANK": "0", "WORLD_SIZE": "2"}
    return _run(
        [[*args, *TWO]] * 2, cwd, [{**launch, VARIABLE: str(folder), "LOCAL_RANK": rank} for rank in ("0", "1")]
    )


def begin(args: list[str], cwd: Path, env: Mapping[str, str], output: Path = Path(os.devnull)) -> ForkProcess:
    """Starts a command in a fork of this process; ``output`` and a file beside it, ``.err``, get what it prints."""
    process = FORK.Process(target=_command, args=(args, cwd, {**settings(cwd), **env}, output))
    process.start()
    return process


def _run(commands: list[list[str]], cwd: Path, envs: list[Mapping[str, str]]) -> list[CompletedProcess[str]]:
    with TemporaryDirectory() as folder:
        outputs = [Path(folder, str(number)) for number in range(len(commands))]
        begun = [begin(*each) for each in zip(commands, [cwd] * len(commands), envs, outputs, strict=True)]
        for process in begun:
            process.join(timeout=SECONDS)
        late = [process for process in begun if process.is_alive()]
        for process in late:
            process.kill()
            process.join()
        printed = [[path.read_text("utf-8") for path in (output, output.with_suffix(".err"))] for output in outputs]
    assert not late, f"{commands[0]} did not end within {SECONDS} s: {printed}"
    return [
        CompletedProcess(args, process.exitcode or 0, *texts)
        for args, process, texts in zip(commands, begun, printed, strict=True)
    ]


def _command(args: list[str], cwd: Path, env: Mapping[str, str], output: Path) -> None:
    os.chdir(cwd)
    os.environ.pop(VARIABLE, None)
    os.environ.update(env)
    files = (Path(os.devnull), output, output if output == Path(os.devnull) else output.with_suffix(".err"))
    for descriptor, (path, flags) in enumerate(zip(files, (os.O_RDONLY, *[os.O_WRONLY | os.O_CREAT] * 2), strict=True)):
        os.dup2(os.open(path, flags), descriptor)
    sys.argv = ["lightning-backdoor", *args]
    # of descriptors, which stay open; handlers of logs get one of their own, since some close theirs
    sys.stdin, sys.stdout, sys.stderr, logged = (
        open(descriptor, mode, 1, encoding="utf-8", closefd=False)  # noqa: SIM115
        for descriptor, mode in ((0, "r"), (1, "w"), (2, "w"), (2, "w"))
    )
    for logger in logging.root.manager.loggerDict.values():  # libraries hold the stream that was there at their import
        for handler in getattr(logger, "handlers", ()):
            if type(handler) is logging.StreamHandler:
                handler.stream = logged  # not by setStream, which flushes the one before, and that may be closed
    status = main(args)
    sys.stdout.flush()
    sys.stderr.flush()
    sys.exit(status)
