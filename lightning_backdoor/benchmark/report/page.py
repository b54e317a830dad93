"""``report.html``: results as one self-contained page, safe for texts with any characters, with figures beside it."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from jinja2 import Environment, PackageLoader

from lightning_backdoor.benchmark.metrics import PARTS
from lightning_backdoor.benchmark.report.figure_files import write_figures
from lightning_backdoor.benchmark.report.figures import NARROW, PRINTED, Figure, trade_off
from lightning_backdoor.benchmark.report.paper_table import DEFAULT, Choice, PaperTable
from lightning_backdoor.benchmark.results import Results
from lightning_backdoor.benchmark.summaries import Summary, shown_metrics
from lightning_backdoor.benchmark.table import NAMES, key_of
from lightning_backdoor.files.atomic import write_whole
from lightning_backdoor.outputs.validity import MAX_LOSS, MIN_ASR, MIN_EXCESS

#: the folder of the figures' files, beside the page; the name of the trade-off's files.
FIGURES, TRADE_OFF = "figures", "trade-off"


class CellLink(NamedTuple):
    """A link from a line of the table to the folder of a cell."""

    seed: str
    address: str


def write_page(
    folder: Path, title: str, results: Results, grid: str, command: str, cells: str = "cells/", choice: Choice = DEFAULT
) -> None:
    """Writes ``report.html``, and its figures as SVG and PDF into ``figures/``; for arguments see :func:`report_html`.

    Args:
        folder: the folder of the page.
    """
    write_figures(folder / FIGURES, figures_of(results))
    write_whole(folder / "report.html", report_html(title, results, grid, command, cells, choice))


def report_html(
    title: str, results: Results, grid: str, command: str, cells: str = "cells/", choice: Choice = DEFAULT
) -> str:
    """The report as an HTML page.

    Args:
        title: the page's title.
        results: the results to show.
        grid: the YAML of the grid.
        command: the command line that ran the grid.
        cells: what precedes the name of a cell in the relative address of its folder.
        choice: what the table for a paper shows first.
    """
    from plotly.offline import get_plotlyjs

    scripts = {"script": f"{_source('page.js')}\n{_source('paper_table.js')}", "plotly": get_plotlyjs()}
    loader = PackageLoader("lightning_backdoor.benchmark.report", "")
    environment = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    single, several = _single_names(results.summaries)
    page = environment.get_template("page.html.jinja").render(
        title=title,
        results=results,
        lines=_with_links(results, cells),
        single=single,
        several=several,
        metrics=shown_metrics(results.summaries),
        parts=PARTS,
        valid_excess=MIN_EXCESS,
        valid_asr=MIN_ASR,
        valid_loss=MAX_LOSS,
        trade_off=trade_off(results.summaries),
        trade_off_narrow=trade_off(results.summaries, NARROW),
        figures=FIGURES,
        trade_off_file=TRADE_OFF,
        attacks=[attack for attack in results.attacks if attack.detectors or attack.comparisons],
        opened=next((attack for attack in results.attacks if attack.roc), None),
        grid=grid,
        command=command,
        table=PaperTable(results.summaries, title, choice),
        style=_source("page.css"),
        allowed=" ".join(f"'sha256-{_digest(source)}'" for source in scripts.values()),
        **scripts,
    )
    return page.encode("utf-8", "replace").decode("utf-8")  # replace surrogates in broken texts: UTF-8 has none


def figures_of(results: Results) -> dict[str, Figure]:
    """The figures of the page by the name of their files, laid out for paper."""
    figures = {TRADE_OFF: trade_off(results.summaries, PRINTED)}
    for attack in results.attacks:
        if attack.roc:
            figures[attack.file] = attack.roc
        figures |= {detector.file: detector.histogram for detector in attack.detectors}
    return figures


def _single_names(summaries: Sequence[Summary]) -> tuple[list[str], list[str]]:
    """The single dataset and model, if there is one, and the axes that have columns."""
    names = {axis: list(dict.fromkeys(line.names[axis] for line in summaries)) for axis in ("dataset", "model")}
    return [n[0] for n in names.values() if len(n) == 1], [axis for axis, n in names.items() if len(n) != 1]


def _with_links(results: Results, cells: str) -> list[tuple[Summary, list[CellLink]]]:
    """Each line of the table with the links to its cells."""
    links: dict[tuple[str, ...], list[CellLink]] = {}
    for row in results.rows:
        address = quote((cells + row["cell"]).encode("utf-8", "replace"))
        links.setdefault(key_of(row, NAMES), []).append(CellLink(str(row["seed"]), f"{address}/"))
    return [(line, links.get(key_of(line.names, NAMES), [])) for line in results.summaries]


def _source(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


def _digest(source: str) -> str:
    return base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
