"""``report.html``: a grid's results as one self-contained page, safe for texts with any characters."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

from jinja2 import Environment, PackageLoader

from lightning_backdoor.benchmark.metrics import PARTS
from lightning_backdoor.benchmark.report.figures import trade_off
from lightning_backdoor.benchmark.report.latex_markdown import latex_table, markdown_table
from lightning_backdoor.benchmark.results import Results
from lightning_backdoor.benchmark.summaries import shown_metrics
from lightning_backdoor.outputs.validity import MAX_LOSS, MIN_ASR, MIN_EXCESS


def report_html(title: str, results: Results, grid: str, command: str) -> str:
    """The report as an HTML page.

    Args:
        title: the page's title.
        results: the results to show.
        grid: the YAML of the grid.
        command: the command line that ran the grid.
    """
    from plotly.offline import get_plotlyjs

    scripts = {"script": _source("page.js"), "plotly": get_plotlyjs()}
    loader = PackageLoader("lightning_backdoor.benchmark.report", "")
    environment = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page = environment.get_template("page.html.jinja").render(
        title=title,
        results=results,
        metrics=shown_metrics(results.summaries),
        parts=PARTS,
        valid_excess=MIN_EXCESS,
        valid_asr=MIN_ASR,
        valid_loss=MAX_LOSS,
        trade_off=trade_off(results.summaries),
        attacks=[attack for attack in results.attacks if attack.detectors or attack.comparisons],
        opened=next((attack for attack in results.attacks if attack.roc), None),
        grid=grid,
        command=command,
        latex=latex_table(results.summaries),
        markdown=markdown_table(results.summaries),
        style=_source("page.css"),
        allowed=" ".join(f"'sha256-{_digest(source)}'" for source in scripts.values()),
        **scripts,
    )
    return page.encode("utf-8", "replace").decode("utf-8")  # replace surrogates in broken texts: UTF-8 has none


def _source(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


def _digest(source: str) -> str:
    return base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
