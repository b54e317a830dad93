"""A grid in Weights & Biases: a run a victim, a run a cell and a summary, logged from what lies on disk."""

from __future__ import annotations

import csv
import hashlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_backdoor.benchmark.grid import Cell, PlannedVictim
from lightning_backdoor.benchmark.table import INTERVALS, METRICS, Row
from lightning_backdoor.benchmark.wandb_charts import of_cell, of_grid
from lightning_backdoor.errors import InputError, one_line

SETTINGS = ("project", "entity", "tags", "name")
#: seconds to wait for the server to begin a run, and for what a run uploads in the end.
BEGIN, END = 30.0, 600.0
#: a run takes nothing of the machine, and says nothing.
QUIET: dict[str, Any] = {
    "silent": True,
    "console": "off",
    "disable_code": True,
    "disable_git": True,
    "disable_job_creation": True,
    "save_code": False,
    "x_disable_machine_info": True,
    "x_disable_meta": True,
    "x_disable_stats": True,
    "x_disable_viewer": True,
    "x_save_requirements": False,
}


class WandbRuns:
    """Logs the runs of a grid. What goes wrong is said in one line, and never raised.

    Where the server cannot be reached, or no API key is there, all goes on offline; ``wandb sync`` sends it later.

    Args:
        settings: the grid's ``wandb``, any of ``project``, ``entity``, ``tags``, and ``name`` of the grid.
        folder: of the grid's output, whose name is the grid's unless it has one; the runs are kept in its ``wandb``.

    Raises:
        InputError: a setting is unknown or malformed; names it.
    """

    def __init__(self, settings: Mapping[str, Any], folder: Path) -> None:
        _check(settings)
        self.folder = folder
        self.name = str(settings.get("name") or folder.resolve().name)
        self.tags: list[str] = [*(settings.get("tags") or [])]
        self._place = {"project": settings.get("project") or "lightning-backdoor", "entity": settings.get("entity")}
        self._offline = False

    def log_victim(self, victim: PlannedVictim, run_folder: Path, digest: str) -> None:
        """The run of a training: its history, and the model as an artifact.

        Args:
            victim: that was trained.
            run_folder: of ``fit``, with ``logs`` of Lightning's ``CSVLogger`` and ``model``.
            digest: of the model.
        """
        names = {name: getattr(victim, name) for name in ("dataset", "model", "attack", "training", "seed")}
        facts = {**_facts(victim, digest), "training": victim.training}

        def log(run: Any) -> None:
            import wandb

            for step, values in _history(run_folder / "logs").items():
                run.log(values, step=step)
            model = wandb.Artifact(facts["victim_artifact"], type="model", metadata={**names, "digest": digest})
            model.add_dir(str((run_folder / "model").resolve()), policy="immutable", skip_cache=True)  # not copied
            run.log_artifact(model)

        self._log(log, id=victim.id, job_type="train", config=facts, **self._places(*names.values()))

    def log_cell(self, cell: Cell, row: Row, cell_folder: Path, digest: str) -> None:
        """The run of a test: its numbers, ROC curve, score histograms and texts.

        Args:
            cell: that was tested.
            row: its numbers, as the table has them.
            cell_folder: with ``outcomes.csv`` and, where a defense wrote it, ``texts.jsonl``.
            digest: of the victim's model.
        """
        facts = {
            **_facts(cell.victim, digest),
            "attack": cell.attack,
            "defense": cell.defense,
            "cell": cell.id,
            "n_clean": row["n_clean"],
            "n_poisoned": row["n_poisoned"],
            "test": cell.config,
        }

        def log(run: Any) -> None:
            numbers = {name: row[name] for name in (*METRICS, *INTERVALS) if row.get(name) is not None}
            run.log(numbers | of_cell(cell_folder))
            if not run.offline:  # what is not on the server cannot be asked for
                run.use_artifact(f"{facts['victim_artifact']}:latest")

        places = self._places(*cell.names.values())
        self._log(log, id=cell.id, job_type=cell.defense, config=facts, **places)

    def log_summary(self, rows: Sequence[Row], compared: Sequence[Row]) -> None:
        """The run of the whole grid: its tables, CACC against ASR, and bars by defense.

        Args:
            rows: of the table.
            compared: what :func:`lightning_backdoor.benchmark.table.comparisons` found.
        """

        def log(run: Any) -> None:
            run.log(of_grid(rows, compared))

        self._log(log, id="summary", job_type="summary", name=self.name, group=self.name, tags=self._tags())

    def _places(self, *names: object) -> dict[str, Any]:
        """What a run is found by, from dataset, model, attack, defense and seed."""
        *before, seed = map(str, names)
        parts = [*filter(None, before), f"seed {seed}"]
        return {"name": " / ".join(parts), "group": "/".join(before[:3]), "tags": self._tags(*parts)}

    def _tags(self, *names: str) -> list[str]:
        return [*dict.fromkeys(tag[:64] for tag in (*names, *self.tags))]  # W&B takes no longer ones

    def _log(self, log: Callable[[Any], None], *, name: str, **of_run: Any) -> None:
        """Begins a run, logs and ends it, whatever happens."""
        try:
            run = self._begun(name=name, **of_run)
            try:
                log(run)
            except BaseException:
                run.finish(exit_code=1)
                raise
            run.finish()
        except Exception as error:
            self._offline |= isinstance(error, TimeoutError)  # of what is uploaded in the end
            _warn(f"W&B: the run {name!r} is not whole ({_line(error)})")

    def _begun(self, *, config: Mapping[str, Any] | None = None, **of_run: Any) -> Any:
        self.folder.mkdir(parents=True, exist_ok=True)
        # what an artifact is made of waits here too, so that it is all there when it is sent
        os.environ.setdefault("WANDB_DATA_DIR", str(self.folder.resolve() / "wandb"))
        # the same cell in another folder is another run
        own = f"{self.folder.resolve()}/{of_run['id']}"
        of_run["id"] = hashlib.sha256(own.encode()).hexdigest()[:16]
        of_run |= {**self._place, "dir": str(self.folder), "config": {"grid": self.name, **(config or {})}}
        if self._offline:
            return _init(**of_run, mode="offline")
        try:
            return _init(**of_run)
        except Exception as error:
            _warn(f"W&B: runs are kept offline from here on, for `wandb sync` ({_line(error)})")
        import wandb

        self._offline = True
        wandb.teardown()  # it holds the run that did not begin, and its id
        return _init(**of_run, mode="offline")


def _init(**of_run: Any) -> Any:
    import wandb

    wandb.setup(wandb.Settings(silent=True))  # asks for no API key either
    os.environ.pop("WANDB_SERVICE", None)  # a process started from here, on whatever machine, has its own
    settings = wandb.Settings(**QUIET, init_timeout=BEGIN, finish_timeout=END, finish_timeout_raises=True)
    # a run that someone else has open is none of ours
    return wandb.init(**of_run, resume="allow", reinit="create_new", settings=settings)


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
    if len(project) > 128 or set(project) & set("/\\#?%:"):
        raise InputError("wandb", f"project is {project!r}", "give at most 128 characters, none of / \\ # ? % :")


def _facts(victim: PlannedVictim, digest: str) -> dict[str, Any]:
    return {
        "dataset": victim.dataset,
        "model": victim.model,
        "attack": victim.attack,
        "seed": victim.seed,
        "victim": victim.id,
        "victim_artifact": f"victim-{victim.id}",
        "victim_digest": digest,
        "fit": victim.config,
    }


def _history(logs: Path) -> dict[int, dict[str, float]]:
    """Logged values by step; what a resumed training did again counts."""
    history: dict[int, dict[str, float]] = {}
    for path in sorted(logs.glob("version_*/metrics.csv"), key=lambda path: int(path.parent.name.rpartition("_")[2])):
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                values = {name: float(value) for name, value in row.items() if value and name != "step"}
                history.setdefault(int(row["step"]), {}).update(values)
    return dict(sorted(history.items()))


def _line(error: Exception) -> str:
    return one_line(f"{type(error).__name__}: {error}")[:200]


def _warn(line: str) -> None:
    print(f"warning: {line}", file=sys.stderr, flush=True)
