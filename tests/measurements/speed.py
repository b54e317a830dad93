"""The speed table of ``docs/results.md``: all paired measurements of the library and a reference, by one command.

Run ``python -m tests.measurements.speed --data sst2 --write docs/results.md`` on an idle machine. Each part is a script
of this folder, run in a process of its own; its figures are kept in ``--folder`` as they come, so that an interrupted
run goes on where it was. ``--again PART`` measures a part anew. With ``--only PART``, ``--write`` replaces the rows of
these parts, and leaves the others as they are.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from tests.measurements.pairs import Summary
from tests.support.marked import marked, replace_marked

#: the parts of the table: the script of this folder, and its own arguments.
PARTS: dict[str, tuple[str, ...]] = {
    "scoring, short": ("cost", "short"),
    "scoring, long": ("cost", "long"),
    "scoring, memory": ("cost", "memory"),
    "fine-tuning": ("cost", "fine-tuning"),
    "STRIP": ("strip",),
    "MuScleLoRA": ("muscle_lora",),
    "ONION": ("onion",),
    "hidden states": ("detectors",),
    "RAP": ("rap",),
    "data defenses": ("data_defenses",),
    "precision": ("precision",),
    "one pass": ("one_pass",),
}
HEADINGS = ("comparison", "library", "reference", "ratio", "middle half", "aim", "pairs")


def measured(name: str, folder: Path, data: Path) -> dict[str, object]:
    """The figures of a part: measured now, unless the folder has them."""
    path = folder / f"{name}.json"
    if not path.exists():
        print(f"{name} …", flush=True)
        script, *own = PARTS[name]
        command = [sys.executable, "-m", f"tests.measurements.{script}", *own]
        subprocess.run([*command, "--data", str(data), "--json", str(path)], check=True)
    content: dict[str, object] = json.loads(path.read_text(encoding="utf-8"))
    return content


def line(row: Summary) -> str:
    """A comparison as a line of a Markdown table."""
    sides = (f"{row.library:.4g} {row.unit}", f"{row.reference:.4g} {row.unit}")
    spread = f"{row.low:.2f} to {row.high:.2f}"
    cells = (row.title, *sides, f"**{row.ratio:.2f}**", spread, row.target.replace("<=", "≤").replace(">=", "≥"))
    return f"| {' | '.join((*cells, str(row.pairs)))} |"


def with_rows_before(lines: list[str], before: str) -> str:
    """The table with those rows of an older one that it lacks, in the order of the older one."""
    old, new = ({line.split("|")[1]: line for line in part} for part in (before.splitlines(), lines))
    return "\n".join((old | new).values())


def main() -> None:
    options = argparse.ArgumentParser(description="The speed table: every paired measurement, by one command.")
    options.add_argument("--data", type=Path, default=Path("sst2"), help="folder with SST-2")
    options.add_argument("--folder", type=Path, default=Path("runs/speed"), help="where the figures are kept")
    options.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=", ".join(PARTS))
    options.add_argument("--again", nargs="+", choices=PARTS, default=[], metavar="PART", help="parts to measure anew")
    options.add_argument("--write", type=Path, help="the file whose marked table is replaced; printed by default")
    args = options.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    for name in args.again:
        (args.folder / f"{name}.json").unlink(missing_ok=True)
    lines = [f"| {' | '.join(HEADINGS)} |", "|" + "---|" * len(HEADINGS)]
    for name in args.only:
        content = measured(name, args.folder, args.data)
        rows: list[dict[str, object]] = content["comparisons"]  # type: ignore[assignment]
        lines += [line(Summary(**row)) for row in rows]  # type: ignore[arg-type]
    if args.write:
        before = "" if args.only == list(PARTS) else marked(args.write, "speed")
        replace_marked(args.write, {"speed": with_rows_before(lines, before)})
    else:
        print("\n".join(lines))


if __name__ == "__main__":
    main()
