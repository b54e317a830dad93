"""The command line. Nothing heavy is imported before it is known which command needs it."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from lightning_backdoor import __version__
from lightning_backdoor.commands.run_folder import VARIABLE
from lightning_backdoor.errors import InputError

COMMANDS = {
    "fit": "train a victim: an attack, or a plain TextClassifier",
    "validate": "evaluate a checkpoint on the validation rows",
    "test": "evaluate a checkpoint on the test rows, defenses attached",
    "predict": "write a checkpoint's predictions on the test rows",
    "benchmark": "run a grid of attacks and defenses, and compare them",
    "poison": "write the poisoned splits of a data set, with flags and trigger spans",
    "scan": "flag and repair suspicious texts before a fine-tuned checkpoint reads them",
}

USAGE = "usage: lightning-backdoor COMMAND [options]\n\n{commands}\n\nCOMMAND --help says what a command takes.\n"


def main(args: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status, 2 for bad input.

    Commands that read a config put the working directory on the import path, as ``python -m`` does, so that it may
    name a class there. ``scan`` does not: it may be run in the very folder of a model that is not trusted.
    """
    args = sys.argv[1:] if args is None else list(args)
    if not args or args[0] in ("-h", "--help"):
        width = max(map(len, COMMANDS))
        sys.stdout.write(
            USAGE.format(commands="\n".join(f"  {name:{width}}  {what}" for name, what in COMMANDS.items()))
        )
        return 0
    if args[0] == "--version":
        sys.stdout.write(f"lightning-backdoor {__version__}\n")
        return 0
    try:
        return _run(args[0], args[1:])
    except BrokenPipeError:  # who reads our output, such as head, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        bad_input = _input_error(error)
        if bad_input is None:
            raise
        if _first_process():
            sys.stderr.write(f"error: {bad_input}\n")
        return 2
    finally:
        os.environ.pop(VARIABLE, None)  # the next command in this process has a folder of its own


def _run(command: str, args: list[str]) -> int:
    if command not in COMMANDS:
        raise InputError("command", f"{command!r} is unknown", f"give one of {', '.join(COMMANDS)}")
    if command == "scan":
        # python -m puts the working directory on the path
        sys.path[:] = [path for path in sys.path if path not in ("", os.getcwd())]  # noqa: PTH109
        from lightning_backdoor.commands.scan import main as scan

        return scan(args)
    if "" not in sys.path and os.getcwd() not in sys.path:  # noqa: PTH109 - sys.path holds strings
        sys.path.insert(0, os.getcwd())  # noqa: PTH109
    if command == "benchmark":
        from lightning_backdoor.benchmark.command import main as benchmark

        return benchmark(args)
    if command == "poison":
        from lightning_backdoor.commands.poison import main as poison

        return poison(args)
    from lightning_backdoor.commands.fit import run

    run(command, args)
    return 0


def _input_error(error: BaseException | None) -> InputError | None:
    """The bad input behind an error; jsonargparse wraps what constructors raise in errors of its own."""
    while error is not None and not isinstance(error, InputError):
        error = error.__cause__
    return error


def _first_process() -> bool:
    """Launchers name the rank in the environment; an error is printed once and not once a rank."""
    ranks = (os.environ.get(name, "0") for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))
    return all(rank == "0" for rank in ranks)
