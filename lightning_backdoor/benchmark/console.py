"""The output of a grid on the terminal: its plan, a line per victim and cell that is done, and the final table."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_backdoor.benchmark.grid import CLEAN_TRAINING, Cell, PlannedVictim, all_victims
from lightning_backdoor.benchmark.metrics import BRIEF
from lightning_backdoor.benchmark.results import Results
from lightning_backdoor.benchmark.running.journal import Journal
from lightning_backdoor.benchmark.summaries import shown_metrics
from lightning_backdoor.errors import escaped, one_line
from lightning_backdoor.outputs.validity import excess_asr, failed_conditions


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

    def mean_seconds(kind: str, ids: Iterable[str]) -> float | None:
        seconds = [event["seconds"] for id in ids if (event := journal.get(kind, id)) and "seconds" in event]
        return statistics.mean(seconds) if seconds else None

    to_run = sum(journal.is_open("cell", cell.id) for cell in cells)
    per_victim, per_cell = mean_seconds("victim", victims), mean_seconds("cell", (cell.id for cell in cells))
    if not to_run:
        lines.append("nothing is left to run")
    elif per_cell is None or (per_victim is None and to_train):
        lines.append("time: not known before a victim and a cell of this grid have run; --only runs some of them")
    else:
        per_victim = per_victim or 0.0
        left = duration((per_victim * len(to_train) + per_cell * to_run) / jobs)
        means = f"{duration(per_victim)} per victim and {duration(per_cell)} per cell so far"
        lines.append(f"time: about {left} with {jobs} at work, from {means}")
    return "\n".join([*lines, ""])


def damage_text(work: PlannedVictim | Cell, fault: str) -> str:
    """The line about a victim or cell that is made again, since its files are damaged."""
    made = "tested" if isinstance(work, Cell) else "trained"
    return f"{work.label}: {escaped(fault)}, so it is {made} again\n"


class Progress:
    """Prints a line per event of a journal, with the number of cells that are done or have failed."""

    def __init__(self, cells: Sequence[Cell], journal: Journal) -> None:
        self._cells = {cell.id: cell for cell in cells}
        self._victims = all_victims(cells)
        self._journal = journal
        journal.refresh()
        self._settled = {id for id in self._cells if not journal.is_open("cell", id)}
        if self._settled:
            sys.stdout.write(f"{len(self._settled)} of {len(self._cells)} cells are done already\n")

    def left(self) -> int:
        """Number of cells that are neither done nor failed."""
        return len(self._cells) - len(self._settled)

    def look(self) -> None:
        """Prints the events since the last call."""
        width = len(str(len(self._cells)))
        for event in self._journal.refresh():
            kind, id = event["kind"], event["id"]
            work = self._cells.get(id) or self._victims.get(id)
            if kind in ("damaged victim", "damaged cell") and work is not None:
                self._settled.discard(id)
                sys.stdout.write(damage_text(work, str(event.get("fault"))))
                continue
            if kind == "victim" and id in self._victims:
                count, label, done = " " * (2 * width + 3), self._victims[id].label, "trained"
            elif kind == "cell" and id in self._cells:
                self._settled.add(id)
                count = f"[{len(self._settled):{width}}/{len(self._cells)}]"
                label, done = self._cells[id].label, _numbers(event.get("row", {}), self._cells[id])
            else:
                continue
            outcome = f"{done} ({duration(event.get('seconds', 0.0))})"
            outcome = f"failed: {escaped(event['error'])}" if "error" in event else outcome
            sys.stdout.write(f"{count} {label}: {outcome}\n")
        sys.stdout.flush()


def warn(message: str) -> None:
    """Writes a warning of one line to standard error."""
    print(f"warning: {one_line(message)}", file=sys.stderr, flush=True)


def print_table(results: Results, folder: Path) -> None:
    """Prints a table over seeds per dataset and model, which attacks are not valid, what is missing, and the files."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    metrics = [metric for metric in shown_metrics(results.summaries) if metric.name in BRIEF]
    tables: dict[str, Table] = {}
    for summary in results.summaries:
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
    for table in tables.values():
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


def duration(seconds: float) -> str:
    """A duration in words.

    >>> [duration(seconds) for seconds in (0.42, 75, 7300)]
    ['0.4 s', '1 min 15 s', '2 h 1 min']
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


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
    judged = cell.defense != CLEAN_TRAINING and not cell.victim.training  # else the ASR is not that of the attack
    failed = failed_conditions(asr, floor) if asr is not None and judged else []
    return ", ".join(texts) + (f"; the attack is not valid: {'; '.join(failed)}" if failed else "")
