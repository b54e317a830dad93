"""Evaluating a victim under an attack and several defenses from Python, without the files of a grid."""

from __future__ import annotations

import io
import logging
import os
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.utilities.seed import isolate_rng

from lightning_backdoor.attacks import BackdoorAttack
from lightning_backdoor.benchmark.comparisons import COMPARED_COLUMNS, answers_of, compare_defenses, working_defenses
from lightning_backdoor.benchmark.console import result_tables
from lightning_backdoor.benchmark.evaluated_victim import borrowed, victim_of
from lightning_backdoor.benchmark.given_defenses import Given, defense_callbacks
from lightning_backdoor.benchmark.grid import UNDEFENDED
from lightning_backdoor.benchmark.ranking import mark_best
from lightning_backdoor.benchmark.summaries import Summary, over_seeds, shown_metrics
from lightning_backdoor.benchmark.table import NAMES, NUMBERS, ResultRow, csv_text, mark_valid, measured
from lightning_backdoor.callbacks import InferenceDefense, OutcomeWriter, OutputFolder
from lightning_backdoor.commands.parsing.refused_options import refused_options_named
from lightning_backdoor.commands.precision import evaluated_precision
from lightning_backdoor.commands.quiet import WARNINGS
from lightning_backdoor.commands.run_metrics import rounded
from lightning_backdoor.data import BackdoorDataModule, Source
from lightning_backdoor.errors import InputError, reason
from lightning_backdoor.files.atomic import write_whole
from lightning_backdoor.files.names import check_folder, expanded
from lightning_backdoor.outputs.outcomes import Outcome
from lightning_backdoor.victim import TextClassifier

if TYPE_CHECKING:
    import pandas

#: the environment variables in which Lightning keeps the seed of a run.
SEED_VARIABLES = ("PL_GLOBAL_SEED", "PL_SEED_WORKERS")
#: the columns of ``results.csv``.
COLUMNS = (*NAMES, "seed", *NUMBERS, "valid", "invalid_because")


class Evaluation:
    """The results of :func:`evaluate`; printed as a table, as those of a grid are.

    Attributes:
        outcomes: the outcome of each test row under each defense, by its name; ``none`` is the undefended victim.
        rows: the row of ``results.csv`` of each defense.
        comparisons: the rows of ``comparisons.csv``: paired tests of every two defenses.
        summaries: the lines of the table, with the best defenses marked.
    """

    def __init__(self, rows: list[ResultRow], outcomes: dict[str, list[Outcome]]) -> None:
        self.outcomes = outcomes
        self.rows = rows
        mark_valid(rows, benign=None)
        seed = rows[0]["seed"]
        answers = {defense: {seed: answers_of(of_defense)} for defense, of_defense in outcomes.items()}
        self.comparisons: list[ResultRow] = compare_defenses(rows[0], answers, seed)
        self.summaries: list[Summary] = over_seeds(rows)
        mark_best(self.summaries, self.comparisons, working_defenses(answers, answers[UNDEFENDED]))

    @property
    def frame(self) -> pandas.DataFrame:
        """The results as a pandas frame: a line per defense, a column per metric that any of them has."""
        import pandas

        known = [name for name in COLUMNS if any(row.get(name) not in (None, "") for row in self.rows)]
        return pandas.DataFrame([{name: row.get(name) for name in known} for row in self.rows])

    def write(self, folder: str | Path) -> None:
        """Writes ``results.csv`` and ``comparisons.csv`` into a folder, which is created."""
        folder = Path(expanded(folder))
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / "results.csv", csv_text(self.rows, COLUMNS))
        write_whole(folder / "comparisons.csv", csv_text(self.comparisons, COMPARED_COLUMNS))

    def __repr__(self) -> str:
        from rich.console import Console

        text = io.StringIO()
        console = Console(file=text, width=120, color_system=None, force_terminal=False, force_jupyter=False)
        for table in result_tables(self.summaries):
            console.print(table)
        return text.getvalue().rstrip("\n")

    def _repr_html_(self) -> str:
        metrics = shown_metrics(self.summaries)
        head = "".join(f"<th>{escape(title)}</th>" for title in ("attack", "defense", *(m.title for m in metrics)))
        lines = []
        for summary in self.summaries:
            numbers = [summary.numbers.get(metric.name) for metric in metrics]
            because = "; ".join(summary.failed_conditions)
            mark = f" <small title='{escape(because)}'>{escape(summary.invalid)}</small>" if summary.invalid else ""
            cells = [escape(summary.names["attack"]) + mark, escape(summary.names["defense"])]
            cells += ["–" if n is None else f"<b>{n.text}</b>" if n.best else n.text for n in numbers]
            lines.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
        return f"<table><tr>{head}</tr>{''.join(lines)}</table>"


def evaluate(
    model: str | Path | TextClassifier,
    data: BackdoorDataModule | Source | str | Path | pandas.DataFrame,
    attack: BackdoorAttack | None = None,
    defenses: Given | Iterable[Given] | Mapping[str, Given] | None = (),
    *,
    folder: str | Path | None = None,
    seed: int | None = None,
    accelerator: str = "auto",
    precision: Any = "32-true",
) -> Evaluation:
    """Tests a trained victim, undefended and under each defense, and compares the defenses on the same texts.

    This is the test of the command ``test``, with its numbers. Defenses learn from and are calibrated on clean
    validation rows; test rows and poison flags influence no threshold. Nothing is trained, and nothing is written but
    the cache of poisoned rows and of language models, unless a folder is given.

    Args:
        model: a run's checkpoint (``.ckpt``), the folder of an exported or of any other Hugging Face classifier, the
            folder of a run, or a trained module, which is left as it was.
        data: the data module; or a source, the path of a file, or a frame with the columns ``text`` and ``label``,
            from which validation and test rows are cut.
        attack: the attack that poisons the test rows, with the arguments of its training; by default the module, if it
            is an attack. Without an attack, only clean rows are tested.
        defenses: defenses and inspections, alone, in a list, or in a mapping by their names in the results: objects,
            their callbacks, their classes, or names such as ``"Strip"``.
        folder: a folder to write ``results.csv`` and ``comparisons.csv`` to, and per defense the files of ``test``.
        seed: seed of the defenses' random choices; by default that of the data module.
        accelerator: the device, as for Lightning's Trainer.
        precision: the precision, as for Lightning's Trainer; mixed precision, or ``auto``, evaluates in float32.

    Raises:
        InputError: an argument cannot be used; the message names it.
        Diverged: a logit of the victim is NaN or infinite.

    Example::

        results = lb.evaluate("runs/first", data, attack=lb.BadNets(), defenses=["Strip", lb.Onion(bar=0.5)])
        results.frame[["defense", "cacc_defended", "asr_defended", "auroc"]]
    """
    output = None if folder is None else Path(expanded(folder))
    if output is not None:
        check_folder(output, "folder")
    by_name = defense_callbacks(defenses)
    if UNDEFENDED in by_name:
        raise InputError("defenses", f"{UNDEFENDED!r} is the name of the undefended victim", "give another name")
    if attack is not None and not isinstance(attack, BackdoorAttack):
        raise InputError("attack", f"{attack!r} is not an attack", "give one such as BadNets()")
    with ExitStack() as stack:
        module = _data_module(data, stack)
        victim = victim_of(model, attack)
        used_seed = module.seed if seed is None else _checked(seed)
        undefended = OutcomeWriter()
        callbacks: list[Callback] = [undefended, *by_name.values()]
        if output is not None:
            callbacks.append(OutputFolder(output))
        for manager in (_quiet(), _seeded(used_seed), borrowed(victim, module)):
            stack.enter_context(manager)
        trainer = _trainer({"accelerator": accelerator, "precision": evaluated_precision(precision)}, callbacks)
        trainer.test(victim, datamodule=module, verbose=False)
        logged = {name: rounded(float(value)) for name, value in trainer.callback_metrics.items()}
        outcomes = {UNDEFENDED: undefended.outcomes}
        for name, callback in by_name.items():
            outcomes[name] = callback.outcomes if isinstance(callback, InferenceDefense) else undefended.outcomes
        names = {
            "dataset": _name_of(data, module),
            "model": str(victim.hparams["model"]),
            "attack": type(victim).__name__ if isinstance(victim, BackdoorAttack) else "none",
        }
    rows = [_row(names, defense, used_seed, logged, of_defense) for defense, of_defense in outcomes.items()]
    evaluation = Evaluation(rows, outcomes)
    if output is not None:
        evaluation.write(output)
    return evaluation


def _checked(seed: int) -> int:
    if not hasattr(seed, "__index__") or not 0 <= seed < 2**32:  # integers of NumPy have it as well
        raise InputError("seed", f"{seed!r} is not a seed", "give a whole number from 0 to 4294967295")
    return int(seed)


def _trainer(options: Mapping[str, Any], callbacks: list[Callback]) -> Trainer:
    """A trainer that tests on one device and writes nothing itself."""
    quiet: dict[str, Any] = {f"enable_{part}": False for part in ("checkpointing", "model_summary", "progress_bar")}
    try:
        with refused_options_named(options):
            return Trainer(
                devices=1,
                logger=False,
                callbacks=callbacks,
                default_root_dir=tempfile.gettempdir(),
                **quiet,
                **options,
            )
    except InputError as error:
        raise error.under(error.field.removeprefix("trainer.")) from None


def _row(
    names: Mapping[str, str], defense: str, seed: int, logged: Mapping[str, float | None], outcomes: Sequence[Outcome]
) -> ResultRow:
    """The row of a defense, of the metrics that were logged for it and for the undefended victim."""
    of_victim = {name: value for name, value in logged.items() if name.count("/") == 1}
    prefix = f"test/{defense}/"
    own = {f"test/{name.removeprefix(prefix)}": value for name, value in logged.items() if name.startswith(prefix)}
    row = {**names, "defense": defense, "seed": seed, **measured({**of_victim, **own}, outcomes)}
    return {**row, "cell": defense, "victim": "victim", "training": "", "seconds": None, "error": ""}


def _data_module(data: object, stack: ExitStack) -> BackdoorDataModule:
    """The data module of what is given as data; a frame is written to a file that is removed with the stack."""
    if isinstance(data, BackdoorDataModule):
        return data
    if isinstance(data, Source):
        return BackdoorDataModule(data)
    if isinstance(data, str | Path):
        return BackdoorDataModule(Source(str(data)))
    if hasattr(data, "to_parquet"):
        path = Path(stack.enter_context(tempfile.TemporaryDirectory()), "frame.parquet")
        try:
            data.to_parquet(path)
        except (TypeError, ValueError) as error:  # a column of several types, or two columns of one name
            raise InputError("data", f"the frame cannot be read: {reason(error)}", "give texts as strings") from None
        return BackdoorDataModule(Source(str(path)))
    raise InputError("data", f"a {type(data).__name__} holds no rows", "give a BackdoorDataModule, a Source or a path")


def _name_of(data: object, module: BackdoorDataModule) -> str:
    """The name of the data in the results; a frame has none of its own, and its file is gone after the run."""
    if hasattr(data, "to_parquet"):
        return "frame"
    return module.files_folder or "/".join(filter(None, (module.source.path, module.source.name)))


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seeds a run within the block, and restores generators and seed of the process."""
    before = {name: os.environ.get(name) for name in SEED_VARIABLES}
    generators = isolate_rng()
    generators.__enter__()
    try:
        seed_everything(seed, verbose=False)
        yield
    finally:
        generators.__exit__(None, None, None)  # it restores nothing if it is given an error
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@contextmanager
def _quiet() -> Iterator[None]:
    """Hides what Lightning says about devices and loaders within the block."""
    log = logging.getLogger("lightning.pytorch")
    level = log.level
    log.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            for message in WARNINGS:
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        log.setLevel(level)
