"""The command line. Imports only the modules of the command that is run, so that help is printed at once."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from lightning_backdoor import __version__
from lightning_backdoor.commands.run_folder import VARIABLE
from lightning_backdoor.errors import Diverged, InputError, input_error_behind

#: commands and their descriptions in the help.
COMMANDS = {
    "fit": "train a victim: an attack, or a plain TextClassifier",
    "validate": "evaluate a checkpoint on the validation rows",
    "test": "evaluate a checkpoint on the test rows, with the defenses attached",
    "predict": "write a checkpoint's predictions on the test rows",
    "benchmark": "run a grid of attacks and defenses, and compare them",
    "poison": "write the poisoned splits of a data set, with flags and trigger spans",
    "scan": "flag and repair suspicious texts before a fine-tuned checkpoint reads them",
}

USAGE = """\
usage: lightning-backdoor COMMAND [options]

{commands}

`lightning-backdoor COMMAND --help` lists the options of a command.
"""


def main(args: Sequence[str] | None = None) -> int:
    """Runs one command of the command line.

    Commands that read a config put the working directory on the import path, as ``python -m`` does, so that a config
    may name a class there. ``scan`` removes it from the path, since it may be run in the folder of an untrusted model.

    Args:
        args: the command and its options; ``sys.argv`` by default.

    Returns:
        The exit status: 0; 2 for invalid input, reported in one line on standard error; 1 if training diverged,
        reported likewise, or if the reader of the output has closed it. ``benchmark`` returns 1 if a cell failed.
    """
    args = sys.argv[1:] if args is None else list(args)
    if not args or args[0] in ("-h", "--help"):
        width = max(map(len, COMMANDS))
        lines = (f"  {name:{width}}  {description}" for name, description in COMMANDS.items())
        sys.stdout.write(USAGE.format(commands="\n".join(lines)))
        return 0
    if args[0] == "--version":
        sys.stdout.write(f"lightning-backdoor {__version__}\n")
        return 0
    try:
        return _run(args[0], args[1:])
    except BrokenPipeError:  # the reader of the output, such as head, has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        known = error if isinstance(error, Diverged) else input_error_behind(error)
        if known is None:
            raise
        if _first_process():
            sys.stderr.write(f"error: {known}\n")
        return 1 if isinstance(known, Diverged) else 2
    finally:
        os.environ.pop(VARIABLE, None)  # another command in this process must write to its own folder


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


def _first_process() -> bool:
    """Whether this is the first process of its launch, which alone prints errors."""
    ranks = (os.environ.get(name, "0") for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))
    return all(rank == "0" for rank in ranks)
