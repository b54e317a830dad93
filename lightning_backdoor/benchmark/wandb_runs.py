"""Weights & Biases runs of a grid, logged from its files: one per victim, one per cell, and a summary."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning_backdoor.benchmark.console import warn
from lightning_backdoor.benchmark.grid import Cell, PlannedVictim
from lightning_backdoor.benchmark.metrics import INTERVALS, METRIC_NAMES
from lightning_backdoor.benchmark.precision import trained_precision
from lightning_backdoor.benchmark.report.figures import trade_off
from lightning_backdoor.benchmark.results import Results
from lightning_backdoor.benchmark.statistics import roc, split_scores
from lightning_backdoor.benchmark.summaries import Summary
from lightning_backdoor.benchmark.table import ATTACK_NAMES, COLUMNS, ResultRow, grouped, invalid_because
from lightning_backdoor.benchmark.wandb_report import save_report
from lightning_backdoor.errors import InputError, escaped, one_line
from lightning_backdoor.outputs.outcomes import read_outcomes
from lightning_backdoor.outputs.versions import versions
from lightning_backdoor.outputs.wandb_media import score_histograms, texts_table
from lightning_backdoor.outputs.wandb_names import FORBIDDEN, LONGEST, run_names

SETTINGS = ("project", "entity", "tags", "name")
#: seconds to wait for the server to begin a run, and to upload the rest of a run at its end.
BEGIN, END = 30.0, 600.0
#: settings by which a run records nothing about the machine and prints nothing.
QUIET_SETTINGS: dict[str, Any] = {
    "silent": True,
    "console": "off",
    "disable_code": True,
    "disable_git": True,
    "disable_job_creation": True,
    "save_code": False,
    "x_disable_machine_info": True,  # private: wandb 0.31.0
    "x_disable_meta": True,  # private: wandb 0.31.0
    "x_disable_stats": True,  # private: wandb 0.31.0
    "x_disable_viewer": True,  # private: wandb 0.31.0
    "x_save_requirements": False,  # private: wandb 0.31.0
}


class WandbRuns:
    """Logs the runs of a grid. A failure is reported in one line on standard error and never raised.

    If the server cannot be reached or there is no API key, runs are kept offline, to be sent later by ``wandb sync``.

    Args:
        settings: the grid's ``wandb`` mapping: any of ``project``, ``entity``, ``tags``, and ``name`` of the grid.
        folder: the grid's output folder, whose name is the default of ``name``; runs are kept in its ``wandb``.

    Raises:
        InputError: a setting is unknown or malformed; the message names it.
    """

    def __init__(self, settings: Mapping[str, Any], folder: Path) -> None:
        _check(settings)
        self.folder = folder
        self.name = escaped(str(settings.get("name") or folder.resolve().name))
        self.tags: list[str] = [*(settings.get("tags") or [])]
        self._project = {"project": settings.get("project") or "lightning-backdoor", "entity": settings.get("entity")}
        self._offline = False

    def log_victim(self, victim: PlannedVictim, run_folder: Path, digest: str) -> None:
        """Logs the run of a training: its history, and the model as an artifact.

        Args:
            victim: the victim that was trained.
            run_folder: the folder of ``fit``, with ``logs`` from Lightning's ``CSVLogger``, and ``model``.
            digest: SHA-256 of the model's weights, tokenizer and configuration.
        """
        facts = self._facts(victim, digest)
        names = {name: facts[name] for name in ("dataset", "model", "attack", "training", "seed")}

        def log(run: Any) -> None:
            import wandb

            for step, values in _history(run_folder / "logs").items():
                run.log(values, step=step)
            model = wandb.Artifact(facts["victim_artifact"], type="model", metadata={**names, "digest": digest})
            model.add_dir(str((run_folder / "model").resolve()), policy="immutable", skip_cache=True)  # not copied
            run.log_artifact(model)

        self._log(log, *names.values(), id=victim.id, job_type="train", config=facts)

    def log_cell(self, cell: Cell, row: ResultRow, cell_folder: Path, digest: str) -> None:
        """Logs the run of a test: its numbers, ROC curve, score histograms and texts.

        Args:
            cell: the cell that was tested.
            row: the cell's numbers, as :func:`lightning_backdoor.benchmark.table.measured` returns them.
            cell_folder: the cell's folder, with ``outcomes.csv`` and, if a defense wrote it, ``texts.jsonl``.
            digest: SHA-256 of the weights, tokenizer and configuration of the victim's model.
        """
        facts = {**self._facts(cell.victim, digest), "attack": cell.attack, "defense": cell.defense, "cell": cell.id}
        facts |= {"n_clean": row["n_clean"], "n_poisoned": row["n_poisoned"], "test": cell.config}
        facts["invalid_because"] = "; ".join(invalid_because(cell, row))

        def log(run: Any) -> None:
            numbers = {name: row[name] for name in (*METRIC_NAMES, *INTERVALS) if row.get(name) is not None}
            run.log(numbers | cell_media(cell_folder))
            if not run.offline and not cell.victim.checkpoint:  # an offline run cannot ask for the victim's artifact
                run.use_artifact(f"{facts['victim_artifact']}:latest")

        self._log(log, *cell.names.values(), id=cell.id, job_type=cell.defense, config=facts)

    def log_summary(self, results: Results) -> None:
        """Logs the run of the whole grid: its tables, CACC against ASR, and bars by defense; and a report of them."""

        def log(run: Any) -> None:
            run.log(grid_media(results))
            try:
                address = save_report(results, self.name, run, self.folder / "wandb" / "report.txt")
            except Exception as error:  # the run itself is whole
                _warn("the report is not saved", error)
                return
            if address is not None:
                sys.stdout.write(f"W&B report       {escaped(address)}\n")

        self._log(log, self.name, id="summary", job_type="summary")

    def _facts(self, victim: PlannedVictim, digest: str) -> dict[str, Any]:
        facts = {name: getattr(victim, name) for name in ("dataset", "model", "attack", "training", "seed")}
        facts |= {"victim": victim.id, "victim_artifact": f"victim-{victim.id}", "victim_digest": digest}
        facts["training_precision"] = trained_precision(self.folder / "victims" / victim.id)
        return {**facts, "fit": victim.config, "versions": versions()}

    def _log(self, log: Callable[[Any], None], *names: object, job_type: str, **arguments: Any) -> None:
        """Starts a run, logs to it and ends it; never raises an ``Exception``.

        Args:
            log: function that logs to a run.
            names: dataset, model, attack, defense and seed, or the grid's name; they give the run's name, group and
                tags.
            job_type: job type of the run.
            arguments: other arguments of the run.
        """
        parts, seed = ([*map(str, names[:4])], names[4]) if len(names) > 4 else ([*map(str, names)], None)
        named = run_names(parts, seed, job_type, self.tags)
        try:
            with _artifacts_in(self.folder.resolve() / "wandb"):
                run = self._begin(**named, **arguments)
                try:
                    log(run)
                except BaseException:
                    run.finish(exit_code=1)
                    raise
                run.finish()
        except Exception as error:
            self._offline |= isinstance(error, TimeoutError)  # from the upload at the end
            _warn(f"the run {named['name']!r} is incomplete", error)

    def _begin(self, *, id: str, config: Mapping[str, Any] | None = None, **arguments: Any) -> Any:
        self.folder.mkdir(parents=True, exist_ok=True)
        # the same cell in another folder is another run
        arguments["id"] = hashlib.sha256(f"{self.folder.resolve()}/{id}".encode()).hexdigest()[:16]
        arguments |= {**self._project, "dir": str(self.folder), "config": {"grid": self.name, **(config or {})}}
        if not self._offline:
            try:
                return _init(**arguments)
            except Exception as error:
                _warn("runs are kept offline from here on, for `wandb sync`", error)
            import wandb

            self._offline = True
            wandb.teardown()  # drops the run that did not start and still holds the id
        return _init(**arguments, mode="offline")


@contextmanager
def _artifacts_in(folder: Path) -> Iterator[None]:
    """Makes W&B keep files of artifacts in a folder, where ``wandb sync`` finds them, unless the user names another."""
    given = "WANDB_DATA_DIR" in os.environ
    os.environ.setdefault("WANDB_DATA_DIR", str(folder))
    try:
        yield
    finally:
        if not given:  # another grid in this process has a folder of its own
            os.environ.pop("WANDB_DATA_DIR", None)


def _init(**arguments: Any) -> Any:
    import wandb

    wandb.setup(wandb.Settings(silent=True))  # never prompts for an API key
    # processes started from here, on any machine, must start their own service
    os.environ.pop("WANDB_SERVICE", None)  # private: wandb 0.31.0
    settings = wandb.Settings(**QUIET_SETTINGS, init_timeout=BEGIN, finish_timeout=END, finish_timeout_raises=True)
    # does not touch a run that the caller has open
    return wandb.init(**arguments, resume="allow", reinit="create_new", settings=settings)


def _check(settings: Mapping[str, Any]) -> None:
    for name, value in settings.items():
        if name not in SETTINGS:
            raise InputError("wandb", f"{name!r} is unknown", f"give any of {', '.join(SETTINGS)}")
        if name != "tags" and not isinstance(value, str | None):
            raise InputError("wandb", f"{name} is {value!r}", "give a text")
    tags = settings.get("tags") or []
    if not isinstance(tags, list) or not all(tag and isinstance(tag, str) for tag in tags):
        raise InputError("wandb", f"tags is {tags!r}", "give a list of texts")
    project = settings.get("project") or ""
    if len(project) > LONGEST["project"] or set(project) & set(FORBIDDEN):
        raise InputError(
            "wandb",
            f"project is {project!r}",
            f"give at most {LONGEST['project']} characters, none of {' '.join(FORBIDDEN)}",
        )


def _history(logs: Path) -> dict[int, dict[str, float]]:
    """Logged values by step; the later values if a resumed training repeated a step."""
    history: dict[int, dict[str, float]] = {}
    for path in sorted(logs.glob("version_*/metrics.csv"), key=lambda path: int(path.parent.name.rpartition("_")[2])):
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                values = {name: float(value) for name, value in row.items() if value and name != "step"}
                history.setdefault(int(row["step"]), {}).update(values)
    return dict(sorted(history.items()))


def _warn(problem: str, error: Exception) -> None:
    warn(f"W&B: {problem} ({one_line(f'{type(error).__name__}: {error}')[:200]})")


def cell_media(folder: Path) -> dict[str, Any]:
    """``scores_clean``, ``scores_poisoned``, ``roc`` and ``texts`` of a cell, as far as there is data for them.

    Args:
        folder: the cell's folder, with ``outcomes.csv`` and, if a defense wrote it, ``texts.jsonl``.
    """
    import wandb

    media: dict[str, Any] = {}
    clean, poisoned = split_scores(read_outcomes(folder / "outcomes.csv"))
    if len(clean) or len(poisoned):
        media |= score_histograms([*clean, *poisoned], [0] * len(clean) + [1] * len(poisoned))
    if points := roc(clean, poisoned):
        table = wandb.Table(columns=["fpr", "tpr"], data=[[*point] for point in points])
        media["roc"] = wandb.plot.line(table, "fpr", "tpr", title="ROC")
    if (folder / "texts.jsonl").exists():
        with (folder / "texts.jsonl").open(encoding="utf-8") as file:
            media["texts"] = texts_table([json.loads(line) for line in file])
    return media


def grid_media(results: Results) -> dict[str, Any]:
    """The tables ``results``, ``over_seeds``, ``comparisons``, ``missing`` and ``inspections`` with rows; and charts.

    ``cacc_against_asr`` is the report's own figure (Plotly), and bar charts show the mean ASR and CACC by defense. In
    ``over_seeds``, each metric that any line has is followed by its standard deviation; ``best`` and ``tied`` name the
    metrics by which a defense is the best, or not distinguishable from it.
    """
    import plotly.graph_objects as go
    import wandb

    lines = [_line(summary) for summary in results.summaries]
    media = {
        "results": _table(results.rows, COLUMNS),
        "over_seeds": _table(lines),
        "comparisons": _table(results.comparisons),
        "missing": _table([{**cell.names, "reason": cell.reason, "message": cell.message} for cell in results.missing]),
        "inspections": _table([inspection.as_row() for inspection in results.inspections]),
        "cacc_against_asr": wandb.Plotly(go.Figure(trade_off(results.summaries))),
    }
    metrics = ("asr_defended", "cacc_defended")
    rows = [line for line in lines if {*metrics} <= {*line} and not line["invalid_because"]]
    n_defenses = len({row["defense"] for row in rows})
    # only attacks that are valid and that all defenses were tested against: others would bias the means
    shared = [row for group in grouped(rows, ATTACK_NAMES) if len(group) == n_defenses for row in group]
    for metric in metrics if shared else ():
        means = [
            {"defense": group[0]["defense"], metric: statistics.mean(row[metric] for row in group)}
            for group in grouped(shared, ["defense"])
        ]
        title = f"{metric.split('_')[0].upper()} after the defense, mean over valid attacks that all have"
        media[f"{metric}_by_defense"] = wandb.plot.bar(_table(means, ("defense", metric)), "defense", metric, title)
    return {name: shown for name, shown in media.items() if not isinstance(shown, wandb.Table) or shown.data}


def _line(summary: Summary) -> ResultRow:
    valid, known = summary.valid
    row: ResultRow = {**summary.names, "seeds": len(summary.seeds), "errors": "; ".join(summary.errors)}
    row["valid"] = f"{valid} of {known}" if known else ""
    row["invalid_because"] = "; ".join(summary.failed_conditions)
    for mark in ("best", "tied"):
        row[mark] = ", ".join(name for name, number in summary.numbers.items() if getattr(number, mark))
    for name, number in summary.numbers.items():
        row |= {name: number.mean, f"{name}_spread": number.spread}
    return row


def _table(rows: Iterable[ResultRow], columns: Sequence[str] = ()) -> Any:
    """A W&B table of rows, with the given columns, or with all columns that any row has."""
    import wandb

    rows = list(rows)
    names = [*columns] or [*dict.fromkeys(name for row in rows for name in row)]
    return wandb.Table(columns=names, data=[[row.get(name) for name in names] for row in rows], allow_mixed_types=True)
