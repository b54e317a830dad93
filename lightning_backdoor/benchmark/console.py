"""What a grid says on the terminal while it runs: its plan, and each thing done."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from lightning_backdoor.benchmark.grid import Cell, Victim
from lightning_backdoor.benchmark.running.journal import Event, Journal
from lightning_backdoor.benchmark.table import ResultRow


def plan_text(cells: Sequence[Cell], journal: Journal, jobs: int) -> str:
    """The cells, the victims to be trained, and how long they will take by those that have run."""
    victims = {cell.victim.id: cell.victim for cell in cells}
    lines = [f"{len(cells)} cells, {len(victims)} victims"]
    for cell in cells:
        event = journal.get("cell", cell.id)
        state = "to run" if event is None else "failed, to run again" if "error" in event else "done"
        lines.append(f"  {place(cell)}: {state}")
    lines.append("victims to be trained:")
    to_train = [victim for victim in victims.values() if is_open(journal, "victim", victim.id)]
    lines += [f"  {_of_victim(victim)}" for victim in to_train] or ["  none"]
    to_run = [cell for cell in cells if is_open(journal, "cell", cell.id)]
    return "\n".join([*lines, _estimate(cells, to_train, to_run, journal, jobs), ""])


def _estimate(
    cells: Sequence[Cell], to_train: Sequence[Victim], to_run: Sequence[Cell], journal: Journal, jobs: int
) -> str:
    seconds = {
        kind: [event["seconds"] for id in ids if (event := journal.get(kind, id)) and "seconds" in event]
        for kind, ids in (("victim", {cell.victim.id for cell in cells}), ("cell", [cell.id for cell in cells]))
    }
    if not to_run:
        return "nothing is left to run"
    if (to_train and not seconds["victim"]) or not seconds["cell"]:
        return "time: not known before a victim and a cell of this grid have run; --only runs some of them"
    means = {kind: sum(found) / len(found) if found else 0.0 for kind, found in seconds.items()}
    left = (means["victim"] * len(to_train) + means["cell"] * len(to_run)) / jobs
    return (
        f"time: about {duration(left)} with {jobs} at work, by {duration(means['victim'])} a victim and"
        f" {duration(means['cell'])} a cell so far"
    )


class Progress:
    """Prints a line for each event, with how many cells are settled."""

    def __init__(self, cells: Sequence[Cell], journal: Journal) -> None:
        self._cells = {cell.id: cell for cell in cells}
        self._victims = {cell.victim.id: cell.victim for cell in cells}
        self._journal = journal
        journal.refresh()
        self._settled = {id for id in self._cells if not is_open(journal, "cell", id)}
        if self._settled:
            sys.stdout.write(f"{len(self._settled)} of {len(self._cells)} cells are done already\n")

    def left(self) -> int:
        """How many cells have neither been done nor failed."""
        return len(self._cells) - len(self._settled)

    def look(self) -> None:
        """Prints what was written to the journal since."""
        for event in self._journal.refresh():
            self._print(event)

    def _print(self, event: Event) -> None:
        kind, id = event["kind"], event["id"]
        took = f" ({duration(event['seconds'])})" if "seconds" in event else ""
        width = len(str(len(self._cells)))
        if kind == "victim" and id in self._victims:
            what = f"failed: {event['error']}" if "error" in event else f"trained{took}"
            sys.stdout.write(f"{'':{2 * width + 3}} {_of_victim(self._victims[id])}: {what}\n")
        elif kind == "cell" and id in self._cells:
            self._settled.add(id)
            row = event.get("row", {})
            what = f"failed: {event['error']}" if "error" in event else f"{_numbers(row)}{took}"
            sys.stdout.write(f"[{len(self._settled):{width}}/{len(self._cells)}] {place(self._cells[id])}: {what}\n")
        sys.stdout.flush()


def place(cell: Cell) -> str:
    """Where a cell is in its grid."""
    names = cell.names
    return " · ".join([*(names[key] for key in ("dataset", "model", "attack", "defense")), f"seed {names['seed']}"])


def duration(seconds: float) -> str:
    """Seconds for the eye.

    >>> [duration(seconds) for seconds in (0.42, 75, 7300)]
    ['0.4 s', '1 min 15 s', '2 h 1 min']
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def is_open(journal: Journal, kind: str, id: str) -> bool:
    """Whether a victim or cell is to be run, or failed and is to be run again."""
    event = journal.get(kind, id)
    return event is None or "error" in event


def _of_victim(victim: Victim) -> str:
    under = f" under {victim.training}" if victim.training else ""
    return f"{victim.dataset} · {victim.model} · {victim.attack}{under} · seed {victim.seed}"


def _numbers(row: ResultRow) -> str:
    shown = []
    for name, metric in (("CACC", "cacc"), ("ASR", "asr")):
        before, after = row[metric], row[f"{metric}_defended"]
        if before is not None:
            shown.append(f"{name} {before:.3f}" + (f" → {after:.3f}" if after not in (None, before) else ""))
    return ", ".join(shown)
