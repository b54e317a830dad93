"""``report``: puts the results of grids and single tests together in one page and table, without running anything."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_backdoor.commands.parsing.option_parser import OptionParser
from lightning_backdoor.errors import InputError, escaped, one_line, reason
from lightning_backdoor.files.names import check_folder, expanded

if TYPE_CHECKING:
    from lightning_backdoor.benchmark.report.source import Source

#: longest title that is made of the names of folders.
LONGEST_TITLE = 60


def parser() -> OptionParser:
    """The options of ``report``."""
    options = OptionParser(
        "lightning-backdoor report",
        description="Makes one page and one table from the results of grids and of single tests, without running"
        " anything. Writes report.html with figures/, table.tex and table.md, results.csv and comparisons.csv.",
    )
    add = options.add_argument
    runs = "output folders of benchmark, run folders after test, or folders of such folders"
    add("runs", nargs="+", metavar="RUNS", help=runs)
    add("--output", default="report", help="the folder that everything is written to (default: report)")
    add("--title", help="title of the page (default: the names of the folders)")
    add("--columns", metavar="NAMES", help="columns of the table, separated by commas, such as asr,cacc_defended,auroc")
    add("--attacks", metavar="NAMES", help="attacks of the table, separated by commas (default: all)")
    add("--percent", action="store_true", help="give the table's shares in percent")
    add("--caption", help="caption of the table, plain text (default: what the numbers are)")
    add("--label", help="label of the table in LaTeX (default: made of the title)")
    return options


def main(args: list[str]) -> int:
    """Runs ``report``; returns the exit status.

    Raises:
        InputError: a folder has no results, or results that cannot be read; or an option cannot be used.
    """
    options = parser().parse_args(args)
    folder = Path(expanded(options.output))
    check_folder(folder, "output")
    from lightning_backdoor.benchmark.report.grid_folders import is_grid
    from lightning_backdoor.benchmark.report.sources import read_sources

    if is_grid(folder):
        raise InputError("output", f"{folder} holds a grid, whose results.csv would be replaced", "give another folder")
    sources = read_sources([Path(expanded(run)) for run in options.runs])
    return _write(sources, options, folder, shlex.join(["lightning-backdoor", "report", *args]))


def _write(sources: Sequence[Source], options: argparse.Namespace, folder: Path, command: str) -> int:
    from lightning_backdoor.benchmark.comparisons import COMPARED_COLUMNS
    from lightning_backdoor.benchmark.meanings import BENIGN
    from lightning_backdoor.benchmark.report.merging import merge
    from lightning_backdoor.benchmark.report.page import write_page
    from lightning_backdoor.benchmark.report.paper_table import Choice, PaperTable
    from lightning_backdoor.benchmark.results import collect_results
    from lightning_backdoor.benchmark.table import COLUMNS, csv_text
    from lightning_backdoor.files.atomic import write_whole

    rows, missing = merge(sources, _say)
    results = collect_results(rows, BENIGN, folder.resolve(), missing)
    links = {row["cell"]: Path(os.path.relpath(row["cell"], folder.resolve())).as_posix() for row in rows}
    for row in rows:
        row["cell"] = links[row["cell"]]
    for number, inspected in enumerate(results.inspections):  # whose words are found by the cells' names
        words = {links[cell]: of_cell for cell, of_cell in inspected.words.items()}
        results.inspections[number] = inspected._replace(words=words)
    choice = Choice(_names(options.columns), _names(options.attacks), options.percent, options.caption, options.label)
    title = options.title or _title([source.label for source in sources])
    table = PaperTable(results.summaries, title, choice)
    configuration = "\n".join(f"# {source.label}\n{source.configuration}" for source in sources)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / "results.csv", csv_text(results.rows, COLUMNS))
        write_whole(folder / "comparisons.csv", csv_text(results.comparisons, COMPARED_COLUMNS))
        write_whole(folder / "table.tex", table.latex() + "\n")
        write_whole(folder / "table.md", table.markdown() + "\n")
        write_page(folder, title, results, configuration, command, cells="", choice=choice)
    except OSError as error:
        raise InputError("output", f"{folder} cannot be written ({reason(error)})", "give another folder") from error
    sys.stdout.write(f"{results.cells_text} of {len(sources)} {'folder' if len(sources) == 1 else 'folders'}\n")
    for name in ("report.html", "table.tex", "table.md", "results.csv", "comparisons.csv", "figures"):
        sys.stdout.write(f"{name:16} {escaped(str(folder / name))}\n")
    return 0


def _names(given: str | None) -> list[str] | None:
    """The names in an option; None if it is not given."""
    return None if given is None else [name.strip() for name in given.split(",") if name.strip()]


def _title(labels: Sequence[str]) -> str:
    title = ", ".join(labels)
    return title if len(title) <= LONGEST_TITLE else f"{len(labels)} folders"


def _say(line: str) -> None:
    sys.stderr.write(f"{one_line(line)}\n")
