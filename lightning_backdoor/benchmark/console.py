"""The output of a grid on the terminal: its plan, a line per victim and cell that is done, and the final table."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lightning_backdoor.benchmark.grid import Cell, PlannedVictim, all_victims
from lightning_backdoor.benchmark.metrics import BRIEF
from lightning_backdoor.benchmark.results import Results
from lightning_backdoor.benchmark.running.journal import Journal
from lightning_backdoor.benchmark.summaries import Summary, shown_metrics
from lightning_backdoor.benchmark.table import invalid_because
from lightning_backdoor.errors import escaped, one_line
from lightning_backdoor.files.names import shown_path
from lightning_backdoor.outputs.progress import duration
from lightning_backdoor.outputs.validity import excess_asr

if TYPE_CHECKING:
    from rich.table import Table


def plan_text(cells: Sequence[Cell], journal: Journal, jobs: int, damaged: Mapping[str, str] | None = None) -> str:
    """The plan as text: cells, victims to be trained, and a time estimate from the victims and cells that have run.

    Args:
        cells: the cells of the plan.
        journal: the grid's journal, without what is damaged on disk.
        jobs: number of workers.
        damaged: ids of the victims and cells that are to be made again since they are damaged, and what is wrong.
    """
    faults = {id: f", since {fault}" for id, fault in (damaged or {}).items()}
    victims = all_victims(cells)
    lines = [f"{len(cells)} cells, {len(victims)} victims"]
    for cell in cells:
        event = journal.get("cell", cell.id)
        state = "to run" if event is None else "failed, to run again" if "error" in event else "done"
        state = f"to run again{faults[cell.id]}" if cell.id in faults else state
        lines.append(f"  {cell.label}: {state}")
    to_train = [
        f"{victim.label}{faults.get(id, '')}" for id, victim in victims.items() if journal.is_open("victim", id)
    ]
    lines += ["victims to be trained:", *(f"  {label}" for label in to_train or ["none"])]

    to_run = sum(journal.is_open("cell", cell.id) for cell in cells)
    estimate = time_left(cells, journal)
    if not to_run:
        lines.append("nothing is left to run")
    elif estimate is None:
        lines.append("time: not known before a victim and a cell of this grid have run; --only runs some of them")
    else:
        per_victim, per_cell = (_mean_seconds(kind, ids, journal) or 0.0 for kind, ids in _ids(cells))
        means = f"{duration(per_victim)} per victim and {duration(per_cell)} per cell so far"
        lines.append(f"time: {estimate.text(jobs)} with {jobs} at work, from {means}")
    return "\n".join([*lines, ""])


class TimeLeft(NamedTuple):
    """An estimate of the time that the rest of a grid takes one worker.

    Attributes:
        seconds: a cell takes as long as the mean of the cells with the same defense or, before one has run, of all.
        rough: whether there are defenses of which no cell has run.
    """

    seconds: float
    rough: bool

    def text(self, jobs: int) -> str:
        """The time with several workers, in words."""
        return f"{'roughly' if self.rough else 'about'} {duration(self.seconds / jobs)}"


def time_left(cells: Sequence[Cell], journal: Journal) -> TimeLeft | None:
    """An estimate of the time that the rest of a grid takes one worker; None before a victim and a cell have run."""
    victims = [id for id in all_victims(cells) if journal.is_open("victim", id)]
    to_run = [cell for cell in cells if journal.is_open("cell", cell.id)]
    (_, victim_ids), (_, cell_ids) = _ids(cells)
    per_victim = _mean_seconds("victim", victim_ids, journal)
    per_cell = _mean_seconds("cell", cell_ids, journal)
    if (victims and per_victim is None) or (to_run and per_cell is None):
        return None
    by_defense: dict[str, list[str]] = {}
    for cell in cells:
        by_defense.setdefault(cell.names["defense"], []).append(cell.id)
    means = {defense: _mean_seconds("cell", ids, journal) for defense, ids in by_defense.items()}
    of_cells = [means[cell.names["defense"]] for cell in to_run]
    seconds = len(victims) * (per_victim or 0.0) + sum(mean or per_cell or 0.0 for mean in of_cells)
    return TimeLeft(seconds, rough=None in of_cells)


def _ids(cells: Sequence[Cell]) -> tuple[tuple[str, list[str]], tuple[str, list[str]]]:
    return ("victim", list(all_victims(cells))), ("cell", [cell.id for cell in cells])


def _mean_seconds(kind: str, ids: Iterable[str], journal: Journal) -> float | None:
    """The mean duration of the victims or cells that have run; None before one has."""
    seconds = [event["seconds"] for id in ids if (event := journal.get(kind, id)) and "seconds" in event]
    return statistics.mean(seconds) if seconds else None


def damage_text(work: PlannedVictim | Cell, fault: str) -> str:
    """The line about a victim or cell that is made again, since its files are damaged."""
    made = "tested" if isinstance(work, Cell) else "trained"
    return f"{work.label}: {escaped(fault)}, so it is {made} again\n"


class Progress:
    """Prints a line when a victim or cell begins and when it is done or has failed, as the journal records it.

    Args:
        cells: the cells of the plan.
        journal: the grid's journal.
        jobs: number of workers, by which the time that is left is divided.
    """

    def __init__(self, cells: Sequence[Cell], journal: Journal, jobs: int = 1) -> None:
        self._cells = {cell.id: cell for cell in cells}
        self._victims = all_victims(cells)
        self._journal = journal
        self._jobs = jobs
        journal.refresh()
        self._settled = {id for id in self._cells if not journal.is_open("cell", id)}
        self._running: set[str] = set()
        if self._settled:
            sys.stdout.write(f"{len(self._settled)} of {len(self._cells)} cells are done already\n")

    def left(self) -> int:
        """Number of cells that are neither done nor failed."""
        return len(self._cells) - len(self._settled)

    def look(self) -> None:
        """Prints the events since the last call."""
        for event in self._journal.refresh():
            work = self._cells.get(event["id"]) or self._victims.get(event["id"])
            if work is not None and (line := self._line(event, work)):
                sys.stdout.write(line)
        sys.stdout.flush()

    def _line(self, event: Mapping[str, Any], work: PlannedVictim | Cell) -> str:
        """The line about an event; empty for events that are not shown."""
        width = len(str(len(self._cells)))
        is_cell, id = isinstance(work, Cell), work.id
        what, _, kind = event["kind"].rpartition(" ")
        if what == "damaged":
            self._settled.discard(id)
            return damage_text(work, str(event.get("fault")))
        if what not in ("", "begun"):
            return ""
        if what == "begun":
            self._running.add(id)
        else:
            self._running.discard(id)
            if is_cell:
                self._settled.add(id)
        number = len(self._settled | self._running & self._cells.keys())
        count = f"[{number:{width}}/{len(self._cells)}]" if is_cell else " " * (2 * width + 3)
        if what == "begun":
            log = self._journal.path.parent / f"{kind}s" / id / "log.txt"
            doing = "running" if is_cell else "training"
            return f"{count} {work.label}: {doing}, log: {escaped(shown_path(log))}\n"
        if "error" in event:
            return f"{count} {work.label}: failed: {escaped(event['error'])}\n"
        left = time_left([*self._cells.values()], self._journal)
        time = duration(event.get("seconds", 0.0))
        time += f"; {left.text(self._jobs)} left" if left and left.seconds else ""
        done = _numbers(event.get("row", {}), work) if isinstance(work, Cell) else "trained"
        return f"{count} {work.label}: {done} ({time})\n"


def warn(message: str) -> None:
    """Writes a warning of one line to standard error."""
    print(f"warning: {one_line(message)}", file=sys.stderr, flush=True)


def result_tables(summaries: Sequence[Summary]) -> list[Table]:
    """The table over seeds per dataset and model."""
    from rich.table import Table
    from rich.text import Text

    metrics = [metric for metric in shown_metrics(summaries) if metric.name in BRIEF]
    tables: dict[str, Table] = {}
    for summary in summaries:
        title = f"{summary.names['dataset']} · {summary.names['model']}"
        if title not in tables:
            tables[title] = Table("attack", "defense", title=Text(title))
            for metric in metrics:
                tables[title].add_column(metric.title.replace(" ", "\n"), justify="right")
        numbers = [summary.numbers.get(metric.name) for metric in metrics]
        cells = ["–" if n is None else n.text if n.spread is None else f"{n.text}\n± {n.spread:.3f}" for n in numbers]
        if summary.failed:
            cells[:1] = ["failed"]
        attack = summary.names["attack"] + (f"\n{summary.invalid}" if summary.invalid else "")
        tables[title].add_row(Text(attack), Text(summary.names["defense"]), *cells)
    return [*tables.values()]


def print_table(results: Results, folder: Path) -> None:
    """Prints a table over seeds per dataset and model, which attacks are not valid, what is missing, and the files."""
    from rich.console import Console
    from rich.text import Text

    console = Console()
    for table in result_tables(results.summaries):
        console.print(table)
    for names, reasons in results.invalid_attacks.items():
        console.print(Text(f"{names}: not valid, since {reasons}"))
    if results.missing:
        console.print(Text(results.cells_text))
    for inspection in results.inspections:
        area = "undefined" if inspection.auroc is None else f"{inspection.auroc:.3f}"
        victims = f"{len(inspection.benign)} benign, {len(inspection.attacked)} attacked victims"
        console.print(Text(f"{' · '.join(inspection.names.values())}: AUROC over victims {area} ({victims})"))
    for name in ("results.csv", "comparisons.csv", "report.html"):
        sys.stdout.write(f"{name:16} {escaped(str(folder / name))}\n")


def _numbers(row: Mapping[str, Any], cell: Cell) -> str:
    """CACC and ASR of a row, without and with the defense, excess ASR, and whether the attack is not valid."""
    texts = []
    for name, metric in (("CACC", "cacc"), ("ASR", "asr")):
        before, after = row.get(metric), row.get(f"{metric}_defended")
        if before is not None:
            texts.append(f"{name} {before:.3f}" + (f" → {after:.3f}" if after not in (None, before) else ""))
    asr, floor = row.get("asr"), row.get("asr_floor")
    if asr is not None and floor is not None:
        texts.append(f"excess ASR {excess_asr(asr, floor):.3f}")
    failed = invalid_because(cell, row)
    return ", ".join(texts) + (f"; the attack is not valid: {'; '.join(failed)}" if failed else "")
