"""``fit``, ``validate``, ``test`` and ``predict``: runs a command with its trainer, model and data."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from lightning.pytorch import Trainer
from lightning_utilities.core.rank_zero import rank_zero_info

from lightning_backdoor.callbacks.failures import FailsAlone
from lightning_backdoor.commands.checkpoint_path import Complete
from lightning_backdoor.commands.checks import check_input, check_published
from lightning_backdoor.commands.fit_report import commands_text, data_text, selected_text, write_calibration
from lightning_backdoor.commands.launch import waiting_text
from lightning_backdoor.commands.precision import precision_text
from lightning_backdoor.commands.quiet import hide_bars_of_transformers, hide_noise
from lightning_backdoor.commands.run_checkpoints import remove_last
from lightning_backdoor.commands.run_cli import RunCLI
from lightning_backdoor.commands.run_folder import VARIABLE, only_fit, removed_if_failed
from lightning_backdoor.commands.run_metrics import write_metrics
from lightning_backdoor.commands.session import Session
from lightning_backdoor.commands.signals import NOTHING_KEPT, when_ended
from lightning_backdoor.data import BackdoorDataModule
from lightning_backdoor.data.kept import Kept
from lightning_backdoor.errors import escaped
from lightning_backdoor.files.atomic import replaced_folder
from lightning_backdoor.outputs.terminal_table import print_results
from lightning_backdoor.victim import TextClassifier
from lightning_backdoor.victim.checkpoints import load_weights


def run(command: str, args: list[str], session: Session | None = None) -> None:
    """Runs a command.

    Args:
        command: ``fit``, ``validate``, ``test`` or ``predict``.
        args: the command's options, as on the command line.
        session: for ``test``: what earlier tests of the same victim have left.

    Raises:
        InputError: the input is invalid; nothing has been started or written.
        SystemExit: ``--help`` or ``--print_config`` was given.
    """
    hide_noise()
    hide_bars_of_transformers()
    inherits = VARIABLE in os.environ
    try:
        cli = RunCLI(command, args)
    except Complete as complete:
        rank_zero_info(str(complete))
        return
    when_ended(lambda: what_is_kept(cli.folder) if command == "fit" else NOTHING_KEPT)
    with nullcontext() if session is None else session.of(cli):
        _run_checked(cli, args, inherits)


def _run_checked(cli: RunCLI, args: list[str], inherits: bool) -> None:
    """Checks the input, then runs the command and writes what it leaves.

    Args:
        cli: the parsed command.
        args: its options.
        inherits: whether the process that started this one, or the grid, has chosen the folder.
    """
    check_input(cli, args)
    if not cli.trainer.is_global_zero:  # the processes of a launch share a folder, which the first one keeps
        cli.folder.mkdir(parents=True, exist_ok=True)
        _run(cli, args)
        return
    # created late, so that invalid input leaves no empty folder
    fits = cli.command == "fit"
    only = only_fit(cli.folder, resume=bool(cli.config.ckpt_path)) if fits else nullcontext()
    only_new = not (fits or inherits or _shares_its_folder(cli.trainer))
    with removed_if_failed(cli.folder, only_new), only:
        if fits:
            _say_what_is_trained_on(cli)
        try:
            _run(cli, args)
        except Exception as error:
            if any(error is callback.failure for callback in cli.callbacks if isinstance(callback, FailsAlone)):
                _write_results(cli)  # of the other defenses
            raise
        if fits:
            _export(cli)
        else:
            _write_results(cli)


def _shares_its_folder(trainer: Trainer) -> bool:
    """Whether other processes of the command, which this one does not start, may have made its folder already."""
    environment = getattr(trainer.strategy, "cluster_environment", None)
    started = environment is not None and environment.creates_processes_externally
    return trainer.world_size > 1 and (trainer.num_nodes > 1 or started)


def _say_what_is_trained_on(cli: RunCLI) -> None:
    if isinstance(cli.model, TextClassifier) and isinstance(cli.datamodule, BackdoorDataModule):
        sys.stdout.write(data_text(cli.model, cli.datamodule, cli.callbacks))
    sys.stdout.write(precision_text(str(cli.trainer.precision), cli.precision.reason))
    sys.stdout.flush()


def what_is_kept(folder: Path) -> str:
    """What a ``fit`` leaves in its folder that is ended now, and which command continues it."""
    if not (folder / "checkpoints" / "last.ckpt").is_file():
        return "no epoch is complete, so nothing is kept; run the same command again"
    command = shlex.join(["lightning-backdoor", "fit", "--config", str(folder / "config.yaml"), "--ckpt_path", "last"])
    return escaped(f"the epochs that are complete are kept; to continue: {command}")


def _run(cli: RunCLI, args: list[str]) -> None:
    """Calls the trainer's method of the command."""
    environment = getattr(cli.trainer.strategy, "cluster_environment", None)
    sys.stderr.write(waiting_text(environment, cli.trainer.num_nodes))
    with _command_line(cli, args), _interruptions():
        getattr(cli.trainer, cli.command)(cli.model, datamodule=cli.datamodule, **cli.method_arguments)


def check(args: list[str], kept: Kept | None = None, as_published: bool = False) -> None:
    """Checks that ``fit`` can start with some options; starts nothing, and writes only poisoned rows to the cache.

    The trainer is not created, since the devices that it needs may be on another machine.

    Args:
        args: the command's options, as on the command line.
        kept: what the data modules of earlier checks have read.
        as_published: whether the model is not trained but tested as it is, which is checked as well.

    Raises:
        InputError: ``fit`` or the test cannot start; the message is the command's.
        SystemExit: ``--help`` or ``--print_config`` was given.
    """
    folder_before = os.environ.get(VARIABLE)
    try:
        cli = RunCLI("fit", args, with_trainer=False)
        if kept is not None and isinstance(cli.datamodule, BackdoorDataModule):
            cli.datamodule.kept = kept
        check_input(cli, args)
        if as_published:
            check_published(cli)
    finally:
        os.environ.pop(VARIABLE, None)
        if folder_before is not None:
            os.environ[VARIABLE] = folder_before


@contextmanager
def _command_line(cli: RunCLI, args: list[str]) -> Iterator[None]:
    """Sets ``sys.argv`` to the command within the block, since processes that the trainer starts run ``sys.argv``.

    Otherwise the processes of a command that is called from Python, by a grid or a test, would repeat the caller.
    """
    before = sys.argv[:]
    if cli.trainer.num_devices > 1:
        sys.argv[1:] = [cli.command, *args]
    try:
        yield
    finally:
        sys.argv[:] = before


@contextmanager
def _interruptions() -> Iterator[None]:
    """Raises KeyboardInterrupt again, which Lightning turns into an exit with status 1."""
    try:
        yield
    except SystemExit as ended:
        if isinstance(ended.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise


def _export(cli: RunCLI) -> None:
    """Exports the victim of the best checkpoint as a Hugging Face folder in the run's folder; says what can follow."""
    if cli.best is None or not cli.best.best_model_path:
        return
    best = Path(cli.best.best_model_path)
    metrics = load_weights(cli.model, best).get("validation_metrics", {})
    is_victim = isinstance(cli.model, TextClassifier)
    with replaced_folder(cli.folder / "model") as folder:
        cli.model.save_pretrained(folder, **({"metrics": metrics} if is_victim else {}))
    if is_victim and isinstance(cli.datamodule, BackdoorDataModule):
        write_calibration(cli.datamodule, cli.folder)
    if not cli.config.keep_last:  # after all files, since a run without it is taken for complete
        remove_last(cli.trainer, cli.folder)
    sys.stdout.write(escaped(f"checkpoint: {best}\nmodel: {cli.folder / 'model'}\n", keep="\n"))
    if isinstance(cli.model, TextClassifier) and isinstance(cli.datamodule, BackdoorDataModule):
        sys.stdout.write(selected_text(cli.model, cli.datamodule, cli.callbacks, metrics))
        why = cli.model.training_defense.unmergeable if cli.model.training_defense else ""
        if why:
            sys.stdout.write(f"the model folder cannot be loaded as a model, since {why}: use the checkpoint\n")
        sys.stdout.write(commands_text(cli.folder, best, is_plain=not why))


def _write_results(cli: RunCLI) -> None:
    """Writes the metrics to ``metrics.json``, prints them, and says where everything is written."""
    if cli.command == "predict":
        sys.stdout.write(escaped(f"written to: {cli.folder / 'predictions.jsonl'}") + "\n")
        return
    metrics = {name: float(value) for name, value in cli.trainer.callback_metrics.items()}
    write_metrics(cli.folder / "metrics.json", metrics, cli.model, cli.datamodule, cli.callbacks, cli.checkpoint)
    print_results({type(cli.model).__name__: metrics})
    sys.stdout.write(escaped(f"written to: {cli.folder}") + "\n")
