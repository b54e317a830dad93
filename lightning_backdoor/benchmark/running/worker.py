"""A worker of a grid: runs cells that no other worker has run or claimed, until all are done."""

from __future__ import annotations

import json
import os
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_backdoor.benchmark.fragments import Fragment, compose, yaml_text
from lightning_backdoor.benchmark.grid import Cell, PlannedVictim, init_arg
from lightning_backdoor.benchmark.running.journal import Journal, claimed
from lightning_backdoor.benchmark.running.products import (
    CHECKPOINT,
    Products,
    Work,
    empty,
    is_whole_checkpoint,
    kind_of,
    needed_by,
)
from lightning_backdoor.benchmark.running.run_command import CommandError, run_command
from lightning_backdoor.benchmark.wandb_runs import WandbRuns
from lightning_backdoor.commands.run_folder import is_complete
from lightning_backdoor.commands.session import Session
from lightning_backdoor.errors import Diverged, InputError, escaped, one_line

#: seconds between checks of the other workers' progress.
PATIENCE = 0.5


@dataclass
class Worker:
    """Runs cells of a grid in a folder, together with any number of workers in the same folder.

    A victim is trained by the first worker that needs it, after its parent; meanwhile other workers run other cells.
    Whatever is done is recorded in the journal; it is not done again, and not read before it is recorded. Workers may
    be killed at any moment, and may belong to several launches or machines: a victim or cell belongs to the worker that
    holds the lock on its log file.

    Consecutive cells of one victim are tested in one :class:`~lightning_backdoor.commands.session.Session`. Therefore
    the cells of the victim tested last come first, then those of victims that no other worker is testing.

    Args:
        folder: the grid's output folder.
        cells: the cells to run.
        launch: name of the call that this worker belongs to; what failed in a launch is not tried again in the same
            launch.
        announce: function called after each event.
        wandb_runs: logs each victim and cell once it is done; None for no W&B runs.
    """

    folder: Path
    cells: Sequence[Cell]
    launch: str
    announce: Callable[[], None] = lambda: None
    wandb_runs: WandbRuns | None = None

    def __post_init__(self) -> None:
        self.journal = Journal(self.folder / "journal.jsonl")
        self.products = Products(self.folder, self.journal)
        self._session: tuple[str, Session] | None = None  # of the victim with this id

    def run(self) -> None:
        """Runs cells until every cell is done or has failed, in this worker or another."""
        open_cells = list(self.cells)
        while True:
            self.journal.refresh()
            open_cells = [cell for cell in open_cells if not self._settled(cell)]
            if not open_cells:
                return
            if not sum(self._take(cell) for cell in self._in_order(open_cells)):  # others have claimed all that is left
                time.sleep(PATIENCE)

    def _in_order(self, cells: Sequence[Cell]) -> Iterator[Cell]:
        """The cells of one victim after the other; which victim is next is decided when the one before is done."""
        by_victim: dict[str, list[Cell]] = {}
        for cell in cells:
            by_victim.setdefault(cell.victim.id, []).append(cell)
        while by_victim:
            free = (victim for victim, of_victim in by_victim.items() if not any(map(self._is_tested, of_victim)))
            victim = self._session[0] if self._session and self._session[0] in by_victim else next(free, None)
            yield from by_victim.pop(victim or next(iter(by_victim)))

    def _is_tested(self, cell: Cell) -> bool:
        """Whether a worker of this launch has begun a cell that is not done; or was killed while it ran it."""
        begun = self.journal.get("begun cell", cell.id)
        return begun is not None and begun["launch"] == self.launch and not self._settled(cell)

    def _settled(self, work: Work) -> bool:
        """Whether a victim or cell is done and logged, or has failed in this launch."""
        kind = kind_of(work)
        if self.products.is_done(work):
            return self.wandb_runs is None or self.journal.get(f"record of {kind}", work.id) is not None
        return self.journal.failed(kind, work.id, self.launch)

    def _take(self, work: Work) -> bool:
        """Runs a cell or victim, after the victim that it needs; returns False if another worker has claimed either."""
        with claimed(self.products.folder_of(work) / "log.txt") as log:
            self.journal.refresh()
            if log is None:
                return False
            if self._settled(work):
                return True
            needed = needed_by(work)
            if needed is not None and not self._settled(needed) and not self._take(needed):
                return False
            if needed is None or self.products.is_done(needed):
                self._attempt(work, log)
                return True
            error = (self.journal.get("victim", needed.id) or {}).get("error", "deleted, and not trained again")
            field = "victim" if isinstance(work, Cell) else f"it needs the victim {needed.label}, which failed"
            self._write(work, error=f"{field}: {error}")
            return True

    def _attempt(self, work: Work, log: int) -> None:
        """Runs and logs a cell or victim; a failure is recorded as an event and not raised."""
        kind, folder = kind_of(work), self.products.folder_of(work)
        needs = self.products.needed_digest(work)  # now, since another launch may train the needed victim again
        if not self.products.is_done(work):
            if not self.journal.is_open(kind, work.id):
                self.products.record_damage(work, self.products.fault(work), self.launch)
                self.journal.refresh()
                self.announce()
            begun = self.journal.get(f"begun {kind}", work.id) or {}
            started = time.perf_counter()
            try:
                if begun.get("needs", "") != needs:  # it was begun with other weights, or does not say with which
                    empty(folder)
                self._write(work, kind=f"begun {kind}", needs=needs)
                facts = self._test(work, folder, log) if isinstance(work, Cell) else self._fit(work, folder, log)
            except Exception as error:
                if type(error).__name__ == "UncompletedJobError":  # from submitit: the job is out of time
                    raise
                os.write(log, escaped(traceback.format_exc(), keep="\n\t").encode())
                message = one_line(str(error))[:500]
                known = isinstance(error, InputError | CommandError | Diverged)
                self._write(work, error=message if known else f"{type(error).__name__}: {message}")
                return
            self._write(work, seconds=round(time.perf_counter() - started, 3), needs=needs, **facts)
        event = self.journal.get(kind, work.id)
        if self.wandb_runs is None or event is None:
            return
        if isinstance(work, Cell):
            self.wandb_runs.log_cell(work, event["row"], folder, needs or "unknown")
        else:
            self.wandb_runs.log_victim(work, folder, event["digest"])
        self._write(work, kind=f"record of {kind}")

    def _write(self, work: Work, kind: str = "", **facts: Any) -> None:
        self.journal.append(kind or kind_of(work), work.id, launch=self.launch, **facts)
        self.journal.refresh()
        self.announce()

    def _fit(self, victim: PlannedVictim, folder: Path, log: int) -> dict[str, Any]:
        """Trains a victim; continues from the last epoch if an earlier run was interrupted."""
        config, last = folder / "fit.yaml", folder / "checkpoints" / "last.ckpt"
        args = ["--config", str(config), "--run_dir", str(folder)]
        # one that was interrupted between its training and its record has no last checkpoint any more
        trained = config.is_file() and is_complete(folder) and is_whole_checkpoint(folder / CHECKPOINT)
        if config.is_file() and _resumable(last):
            args += ["--ckpt_path", str(last)]
        elif not trained:
            empty(folder)
        # also to resume, since the folder may have been moved
        config.write_text(yaml_text(compose(victim.config, self._parent(victim))), encoding="utf-8")
        if not trained:
            self._session = None  # the memory is needed for training
            run_command("fit", args, folder, log, victim.config["trainer"])
        if not (folder / CHECKPOINT).exists() or not list((folder / "model").glob("*.safetensors")):
            raise CommandError("fit selected no checkpoint and wrote no model; validate, and leave fast_dev_run out")
        return {"digest": self.products.model_digest(victim), "files": self.products.digests(victim)}

    def _test(self, cell: Cell, folder: Path, log: int) -> dict[str, Any]:
        """Tests a cell and returns its row of the table."""
        from lightning_backdoor.benchmark.table import measured
        from lightning_backdoor.outputs.outcomes import read_outcomes

        empty(folder)
        config, trained = folder / "test.yaml", self.products.folder_of(cell.victim)
        victim = cell.victim.config if cell.victim.checkpoint else self._parent(cell.victim)
        config.write_text(yaml_text(compose(victim, cell.config)), encoding="utf-8")
        args = ["--config", str(config)]
        if not cell.victim.checkpoint:
            args = ["--config", str(trained / "config.yaml"), *args, "--ckpt_path", str(trained / CHECKPOINT)]
        trainer = compose(cell.victim.config, cell.config)["trainer"]
        run_command("test", args, folder, log, trainer, self._session_of(cell.victim))
        records = [self.products.folder_of(victim) / "cleaning.json" for victim in cell.victim.line]
        cleaning = next((_read_json(path) for path in reversed(records) if path.exists()), None)
        outcomes = read_outcomes(folder / "outcomes.csv")
        row = measured(_read_json(folder / "metrics.json"), outcomes, cleaning)
        return {"row": row, "files": self.products.digests(cell)}

    def _session_of(self, victim: PlannedVictim) -> Session:
        """The session of a victim; that of another victim is given up before."""
        if self._session is None or self._session[0] != victim.id:
            configs = [cell.config for cell in self.cells if cell.victim.id == victim.id]
            self._session = victim.id, Session(configs)
        return self._session[1]

    def _parent(self, victim: PlannedVictim) -> Fragment:
        """The part of a config that gives the checkpoint of a victim's parent, which is known by its id until then."""
        if victim.parent is None:
            return {}
        if victim.parent.checkpoint:
            return init_arg(victim.parent_argument, victim.parent.checkpoint)
        return init_arg(victim.parent_argument, str(self.products.folder_of(victim.parent) / CHECKPOINT))


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _resumable(checkpoint: Path) -> bool:
    """Whether training can resume from a checkpoint: it is whole, and so is the best one so far, in its folder."""
    if not is_whole_checkpoint(checkpoint):
        return False
    from lightning_backdoor.victim.checkpoints import read_checkpoint

    try:
        callbacks = read_checkpoint(checkpoint).get("callbacks", {})
    except InputError:  # of another program
        return False
    # by name, since the folder may have been moved
    best = [Path(state["best_model_path"]).name for state in callbacks.values() if "best_model_path" in state]
    return "best.ckpt" not in best or is_whole_checkpoint(checkpoint.with_name("best.ckpt"))
