"""A worker: takes the cells that nobody has done or taken, one after another, until all are done."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lightning_backdoor.benchmark.grid import Cell, Victim, merged
from lightning_backdoor.benchmark.running.journal import Event, Journal, claimed
from lightning_backdoor.benchmark.running.run_command import StageError, run_stage, write_config
from lightning_backdoor.errors import InputError, one_line

#: without which a victim or a cell is not there, whatever the journal says: somebody has deleted it.
PRODUCT = {"victim": "checkpoints/best.ckpt", "cell": "outcomes.csv"}
#: seconds between looks at what other workers have left.
PATIENCE = 0.5


class Worker:
    """Runs cells of a grid in a folder, together with any number of workers of the same folder.

    A victim is trained by the first worker that needs it; others go on with other cells meanwhile. What is done is
    written to the journal, and is neither done again nor read before. Workers may be killed at any moment, and come
    from several launches or machines: a piece of work belongs to whoever holds the lock of its log file.

    Args:
        folder: of the grid's output.
        cells: to run.
        launch: names the call that this worker belongs to: what failed in it is not tried again in it.
        announce: called after each event.
        record: called once with each victim and cell that is done and with its event, such as to log it elsewhere.
    """

    def __init__(
        self,
        folder: Path,
        cells: Sequence[Cell],
        launch: str,
        announce: Callable[[], None] = lambda: None,
        record: Callable[[Victim | Cell, Event], None] | None = None,
    ) -> None:
        self.folder = folder
        self.cells = cells
        self.launch = launch
        self.announce = announce
        self.record = record
        self.journal = Journal(folder / "journal.jsonl")

    def run(self) -> None:
        """Returns when every cell is done or has failed, by this worker or another."""
        open_cells = list(self.cells)
        while True:
            self.journal.refresh()
            open_cells = [cell for cell in open_cells if not self.settled("cell", cell.id)]
            if not open_cells:
                return
            taken = sum(self._take(cell) for cell in open_cells)
            if not taken:  # others are at work on all that is left
                time.sleep(PATIENCE)

    def settled(self, kind: str, id: str) -> bool:
        """Whether nothing is left to do: it is done and recorded, or has failed in this launch."""
        if self.done(kind, id):
            return self.record is None or self.journal.get(f"record of {kind}", id) is not None
        return self.journal.failed(kind, id, self.launch)

    def done(self, kind: str, id: str) -> bool:
        """Whether it is done, and still there."""
        event = self.journal.get(kind, id)
        return event is not None and "error" not in event and (self.folder / f"{kind}s" / id / PRODUCT[kind]).exists()

    def _take(self, cell: Cell) -> bool:
        """Runs a cell, and its victim first where that is not trained; whether anything was done."""
        folder = self.folder / "cells" / cell.id
        with claimed(folder / "log.txt") as log:
            self.journal.refresh()
            if log is None or self.settled("cell", cell.id):
                return False
            victim = self._victim(cell.victim)
            if victim is None:
                return False
            if not self.done("victim", cell.victim.id):
                self._write("cell", cell.id, error=f"victim: {victim.get('error', 'deleted, and not trained again')}")
                return True
            self._attempt("cell", cell, folder, log, lambda: self._test(cell, folder, log))
            return True

    def _victim(self, victim: Victim) -> Event | None:
        """The event of a victim that is settled, by training it where nobody has; None while another worker does."""
        folder = self.folder / "victims" / victim.id
        if not self.settled("victim", victim.id):
            with claimed(folder / "log.txt") as log:
                self.journal.refresh()
                if log is None:
                    return None
                if not self.settled("victim", victim.id):
                    self._attempt("victim", victim, folder, log, lambda: self._fit(victim, folder, log))
        return self.journal.get("victim", victim.id)

    def _attempt(
        self, kind: str, work: Victim | Cell, folder: Path, log: int, do: Callable[[], dict[str, Any]]
    ) -> None:
        if not self.done(kind, work.id):
            started = time.perf_counter()
            try:
                found = do()
            except Exception as error:
                if type(error).__name__ == "UncompletedJobError":  # of submitit: the job's time is up
                    raise
                os.write(log, traceback.format_exc().encode())
                self._write(kind, work.id, error=_one_line(error))
                return
            self._write(kind, work.id, seconds=round(time.perf_counter() - started, 3), **found)
        event = self.journal.get(kind, work.id)
        if self.record is not None and event is not None:
            self.record(work, event)
            self._write(f"record of {kind}", work.id)

    def _write(self, kind: str, id: str, **facts: Any) -> None:
        self.journal.append(kind, id, launch=self.launch, **facts)
        self.journal.refresh()
        self.announce()

    def _fit(self, victim: Victim, folder: Path, log: int) -> dict[str, Any]:
        """Trains a victim, going on from the last epoch of a run that was cut off."""
        config, last = folder / "fit.yaml", folder / "checkpoints" / "last.ckpt"
        args = ["--config", str(config), "--run_dir", str(folder)]
        if config.is_file() and _resumable(last):
            args += ["--ckpt_path", str(last)]
        else:
            _empty(folder, except_for="log.txt")
            write_config(config, victim.config)
        run_stage("fit", args, folder, log, victim.config["trainer"])
        if not (folder / PRODUCT["victim"]).exists() or not list((folder / "model").glob("*.safetensors")):
            raise StageError("fit selected no checkpoint and wrote no model; validate, and leave fast_dev_run out")
        return {"digest": digest(folder / "model")}

    def _test(self, cell: Cell, folder: Path, log: int) -> dict[str, Any]:
        from lightning_backdoor.benchmark.table import measured
        from lightning_backdoor.outputs.outcomes import read_outcomes

        _empty(folder, except_for="log.txt")
        config, trained = folder / "test.yaml", self.folder / "victims" / cell.victim.id
        write_config(config, cell.config)
        args = ["--config", str(trained / "config.yaml"), "--config", str(config)]
        args += ["--ckpt_path", str(trained / "checkpoints" / "best.ckpt")]
        run_stage("test", args, folder, log, merged(cell.victim.config, cell.config)["trainer"])
        metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        return {"row": measured(metrics, read_outcomes(folder / "outcomes.csv"))}


def digest(model: Path) -> str:
    """SHA-256 of the weights of an exported model."""
    found = hashlib.sha256()
    for path in sorted(model.glob("*.safetensors")):
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                found.update(block)
    return found.hexdigest()


def _resumable(checkpoint: Path) -> bool:
    """Whether training can go on from a checkpoint: it is whole, and the best so far is the one beside it."""
    if not checkpoint.is_file():
        return False
    from lightning_backdoor.victim.checkpoints import read_checkpoint

    try:
        callbacks = read_checkpoint(checkpoint).get("callbacks", {})
    except InputError:  # half of one
        return False
    best = [Path(state["best_model_path"]) for state in callbacks.values() if "best_model_path" in state]
    # in a folder that was moved, Lightning would forget which was the best
    return all(path.parent == checkpoint.parent for path in best if path.name == "best.ckpt")


def _empty(folder: Path, except_for: str) -> None:
    """Removes what a run that was cut off left behind."""
    for path in list(folder.iterdir()):
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != except_for:
            path.unlink()


def _one_line(error: BaseException) -> str:
    message = one_line(str(error))[:500]
    return message if isinstance(error, InputError | StageError) else f"{type(error).__name__}: {message}"
