"""The command line. Imports only the modules of the command that is run, so that help is printed at once."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress

from lightning_backdoor import __version__
from lightning_backdoor.commands.parsing.early_checks import settled
from lightning_backdoor.commands.parsing.help_pages import help_asked
from lightning_backdoor.commands.parsing.option_parser import check_options
from lightning_backdoor.commands.quick_imports import quick_imports
from lightning_backdoor.commands.run_folder import VARIABLE
from lightning_backdoor.commands.signals import Ended, ended_by_signals, ending_line, forget_what_is_left
from lightning_backdoor.commands.slurm_step import tasks_together
from lightning_backdoor.commands.streams import drop_output, prepare_streams
from lightning_backdoor.commands.threads import let_waiting_threads_sleep
from lightning_backdoor.errors import InputError, did_you_mean, known_error

#: commands and their descriptions in the help.
COMMANDS = {
    "fit": "train a victim: an attack, or a plain TextClassifier",
    "validate": "evaluate a checkpoint on the validation rows",
    "test": "evaluate a checkpoint on the test rows, with the defenses attached",
    "predict": "write a checkpoint's predictions on the test rows",
    "benchmark": "run a grid of attacks and defenses, and compare them",
    "report": "put the results of grids and tests together in one page and table, without running anything",
    "poison": "write the poisoned splits of a data set, with flags and trigger spans",
    "scan": "flag and repair suspicious texts before a fine-tuned checkpoint reads them",
    "list": "list attacks, defenses, data, models, presets and metrics",
    "completion": "write a script for the tab key of bash or zsh",
}

USAGE = """\
usage: lightning-backdoor COMMAND [options]

{commands}

`lightning-backdoor COMMAND --help` lists the options of a command.
"""


def main(args: Sequence[str] | None = None) -> int:
    """Runs one command of the command line.

    Commands that read a config put the working directory last on the import path, so that a config may name a class
    there. ``scan`` takes it off the path, since it may be run in the folder of an untrusted model.

    Args:
        args: the command and its options; ``sys.argv`` by default.

    Returns:
        The exit status: 0; 2 for invalid input, reported in one line on standard error; 1 for what is not the input's
        fault, such as a full disk, training that diverged, or a reader of the output that has closed it, and from
        ``benchmark`` if a cell failed; 128 plus the signal's number if SIGTERM, SIGHUP or SIGINT (control-C) ended
        the command.
    """
    args = sys.argv[1:] if args is None else list(args)
    import_path = sys.path[:]
    speaks = _first_process() or not _runs_with_others(args)  # asked now, since Lightning removes WORLD_SIZE later
    prepare_streams()
    let_waiting_threads_sleep()
    try:
        with ended_by_signals() as received:
            try:
                status = _run(args)
            except SystemExit as ended:  # help was printed; or Lightning noticed a signal, and ends with status 0
                sys.stdout.flush()
                if received.number == signal.SIGINT:
                    raise KeyboardInterrupt from None
                if received.number is not None and not isinstance(ended, Ended):
                    raise Ended(received.number) from None
                raise
            except Exception:
                if received.number == signal.SIGINT:  # an import that it interrupted may raise another error
                    raise KeyboardInterrupt from None
                raise
            sys.stdout.flush()  # an error of the last lines is reported here, not when the interpreter exits
            return status
    except Ended as ended:
        _report(ending_line(str(ended)), speaks)
        return 128 + ended.number
    except KeyboardInterrupt:
        _report(ending_line("interrupted"), speaks)
        return 130
    except BrokenPipeError:  # the reader of the output, such as head, has closed it
        drop_output()
        return 1
    except Exception as error:
        if _interrupted(error):
            _report("interrupted", speaks)
            return 130
        line, status = known_error(error)
        if not line:
            raise
        try:
            sys.stdout.flush()
        except OSError:  # it is the output that cannot be written
            drop_output()
        _report(f"error: {line}", speaks or status == 1)  # a full disk may be that of another process alone
        return status
    finally:
        os.environ.pop(VARIABLE, None)  # another command in this process must write to its own folder
        sys.path[:] = import_path  # and may have another working directory
        forget_what_is_left()


def _run(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help"):
        width = max(map(len, COMMANDS))
        lines = (f"  {name:{width}}  {description}" for name, description in COMMANDS.items())
        sys.stdout.write(USAGE.format(commands="\n".join(lines)))
        return 0
    if args[0] == "--version":
        sys.stdout.write(f"lightning-backdoor {__version__}\n")
        return 0
    command, options = args[0], args[1:]
    if command not in COMMANDS:
        near = did_you_mean(command, COMMANDS)
        raise InputError(
            "command", f"{command[:100]!r} is unknown", f"{near} give one of {', '.join(COMMANDS)}".strip()
        )
    try:
        os.getcwd()  # noqa: PTH109
    except OSError:
        raise InputError("working directory", "it has been deleted", "change to one that exists") from None
    if command == "scan":
        _without_working_directory()
        from lightning_backdoor.commands.scan import main as scan

        return scan(options)
    check_options(options)
    if command == "completion":
        return _completion(options)
    _working_directory_last()
    if command == "benchmark":
        from lightning_backdoor.benchmark.command import main as benchmark

        return benchmark(options)
    if command == "list":
        from lightning_backdoor.benchmark.metrics import METRICS
        from lightning_backdoor.commands.list import main as list_names

        return list_names(options, METRICS)
    if command == "report":
        from lightning_backdoor.benchmark.report_command import main as report

        return report(options)
    if command == "poison":
        from lightning_backdoor.commands.poison import main as poison

        return poison(options)
    if page := help_asked(command, options):
        sys.stdout.write(page)
        return 0
    settled(command, options)
    with quick_imports():
        from lightning_backdoor.commands.fit import run

    run(command, options)
    return 0


def _completion(options: list[str]) -> int:
    from lightning_backdoor.benchmark.command import parser as benchmark
    from lightning_backdoor.benchmark.report_command import parser as report
    from lightning_backdoor.commands import completion, list, poison
    from lightning_backdoor.commands.scan.options import parser as scan

    parsers = {"benchmark": benchmark, "report": report, "list": list.parser, "poison": poison.parser}
    parsers |= {"scan": scan, "completion": completion.parser}
    return completion.main(options, COMMANDS, {name: make() for name, make in parsers.items()})


def _working_directory_last() -> None:
    """Puts the working directory at the end of the import path, so that a config may name a class in it.

    It comes after all packages, so that no file in it replaces a module of one. A path that has it already, as in an
    interactive session, is left as it is.
    """
    if not any(map(_is_working_directory, sys.path)):
        sys.path.append(os.getcwd())  # noqa: PTH109 - sys.path holds strings


def _without_working_directory() -> None:
    """Takes the working directory off the import path, under whatever name it is there."""
    sys.path[:] = [path for path in sys.path if not _is_working_directory(path)]


def _is_working_directory(path: str) -> bool:
    return os.path.realpath(path or ".") == os.path.realpath(".")


def _interrupted(error: BaseException | None) -> bool:
    """Whether control-C is behind an error: libraries that it interrupts while they are imported raise their own."""
    seen: list[BaseException] = []  # an error that is raised again may be behind itself
    while error is not None and error not in seen:
        if isinstance(error, KeyboardInterrupt):
            return True
        seen.append(error)
        error = error.__cause__ or error.__context__
    return False


def _report(line: str, speaks: bool) -> None:
    """Writes a line to standard error, if this process is one that speaks."""
    if speaks:
        with suppress(OSError):  # it may be closed, or a file on a full disk
            sys.stderr.write(f"{line}\n")


def _runs_with_others(args: Sequence[str]) -> bool:
    """Whether the processes of a launch run a command together, and not each a command of its own, such as a shard."""
    command, options = args[:1], " ".join(args[1:])
    if command == ["scan"]:
        together = re.search(r"--(devices|num[-_]nodes)[= ](?!1( |$))", options) is not None
    else:
        together = command in (["fit"], ["validate"], ["test"], ["predict"])
    return together and (int(os.environ.get("WORLD_SIZE", "1")) > 1 or tasks_together() > 1)


def _first_process() -> bool:
    """Whether this is the first process of its launch."""
    ranks = (os.environ.get(name, "0") for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))
    return all(rank == "0" for rank in ranks)
