"""The results of a GPU day: rows of figures, written to a JSON file as they come, and printed as one table."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from rich.markup import escape
from rich.table import Table

from lightning_backdoor.files.atomic import write_whole

#: version of the JSON file's layout.
SCHEMA = 1

Status = Literal["measured", "failed", "cut", "skipped"]


@dataclass(frozen=True)
class Row:
    """One figure, or two figures of one unit and their ratio.

    Attributes:
        title: what is measured, and over what.
        precision: ``float32``, ``tf32``, ``bf16-mixed`` (autocast over float32 weights) or ``bf16`` (weights in bf16).
        unit: of ``value`` and ``reference``.
        value: the library's figure; the median of the rounds.
        reference: the reference's figure, if there is one.
        ratio: of value to reference; the median of the ratios of the rounds.
        rounds: number of measurements, warm-up left out.
        memory: GPU memory in MiB that the measured call adds at its peak; None without a GPU.
        reference_memory: likewise for the reference.
        note: what else is to be said.
        part: name of the part, filled in by the report.
    """

    title: str
    unit: str
    value: float
    precision: str = "float32"
    reference: float | None = None
    ratio: float | None = None
    rounds: int = 1
    memory: float | None = None
    reference_memory: float | None = None
    note: str = ""
    part: str = ""


class Ended(NamedTuple):
    """How a part ended.

    Attributes:
        status: ``measured``; ``failed``, by an error or the end of its process; ``cut``, since its time or that of all
            parts was over; ``skipped``, since the machine lacks what it needs.
        reason: why, unless it was measured.
        memory: GPU memory in MiB that its process held at the peak of the part; None if that is unknown.
    """

    status: Status
    reason: str = ""
    memory: float | None = None


@dataclass
class Report:
    """All results; every change is written to the file at once, so that an end by force loses nothing.

    Attributes:
        path: the JSON file.
        budget: seconds that all parts together may take.
        toy: whether tiny networks were measured.
        machine: device, versions and settings.
        parts: how each part ended, and how long it took, by name.
        rows: all figures, in the order in which they were measured.
    """

    path: Path
    budget: float
    toy: bool
    machine: dict[str, Any] = field(default_factory=dict)
    parts: dict[str, dict[str, Any]] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    started: float = field(default_factory=time.time)
    _begun: dict[str, float] = field(default_factory=dict)

    def describe(self, machine: dict[str, Any]) -> None:
        self.machine = machine
        self.write()

    def begin(self, part: str) -> None:
        self._begun[part] = time.monotonic()

    def add(self, part: str, row: Row) -> None:
        self.rows.append(Row(**{**asdict(row), "part": part}))
        self.write()

    def end(self, part: str, ended: Ended) -> None:
        seconds = time.monotonic() - self._begun[part] if part in self._begun else 0.0
        self.parts[part] = {**ended._asdict(), "seconds": round(seconds, 1)}
        self.write()

    @property
    def complete(self) -> bool:
        """Whether no part failed or was cut."""
        return all(part["status"] in ("measured", "skipped") for part in self.parts.values())

    def write(self) -> None:
        content = {
            "schema": SCHEMA,
            "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.started)),
            "seconds": round(time.time() - self.started, 1),
            "budget": self.budget,
            "toy": self.toy,
            "machine": self.machine,
            "parts": self.parts,
            "rows": [asdict(row) for row in self.rows],
        }
        write_whole(self.path, json.dumps(content, indent=1) + "\n")

    def table(self) -> Table:
        """All figures, and the parts without any."""
        facts = ", ".join(f"{name} {value}" for name, value in self.machine.items())
        sizes = "tiny networks; " if self.toy else ""
        table = Table(
            title="The library on one machine",
            caption=escape(f"{sizes}medians; memory: MiB added by the call, and by its reference; {facts}"),
        )
        for heading in ("part", "measurement", "precision", "library", "reference", "ratio", "memory", "note"):
            table.add_column(heading, justify="right" if heading in ("library", "reference", "ratio") else "left")
        for name, ended in self.parts.items():
            rows = [row for row in self.rows if row.part == name]
            for row in rows:
                table.add_row(name, *map(escape, cells(row)))
            if ended["memory"]:
                table.add_row(name, "all of the part, at its peak", *[""] * 4, f"{ended['memory']:,.0f}")
            if ended["status"] != "measured" or not rows:
                table.add_row(name, escape(f"{ended['status']}: {ended['reason']}" if ended["reason"] else ""))
            table.add_section()
        return table


def cells(row: Row) -> list[str]:
    """The cells of a row of the table, from the title on."""
    memory = [f"{value:,.0f}" for value in (row.memory, row.reference_memory) if value is not None]
    return [
        row.title,
        row.precision,
        f"{row.value:.4g} {row.unit}",
        "" if row.reference is None else f"{row.reference:.4g} {row.unit}",
        "" if row.ratio is None else f"{row.ratio:.3f}",
        " / ".join(memory),
        row.note,
    ]
