"""``report.html``: a grid's results as one page that asks nothing of any network and that no text can break."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, Template

from lightning_backdoor.benchmark.report.columns import PARTS, SHOWN, lines
from lightning_backdoor.benchmark.report.figures import Style, histogram, roc_curves, scatter, scores, styles
from lightning_backdoor.benchmark.report.latex_markdown import latex_table, markdown_table
from lightning_backdoor.benchmark.table import NAMES, VALID_ASR, VALID_LOSS, Row
from lightning_backdoor.outputs.outcomes import Outcome, read_outcomes
from lightning_backdoor.outputs.token_view import ViewedText, pieces

#: texts of a cell at most: poisoned, clean.
POISONED_TEXTS, CLEAN_TEXTS = 8, 4
#: characters of HTML that all texts together may have, about.
TEXT_BUDGET = 3_000_000


class Detector(NamedTuple):
    """A defense on one attack: a histogram and texts of its first seed."""

    defense: str
    seed: int
    histogram: Any
    texts: list[dict[str, Any]]
    left_out: int


class Attack(NamedTuple):
    """What is shown of one dataset, model and attack beside the table."""

    names: tuple[str, str, str]
    roc: Any
    detectors: list[Detector]
    compared: list[Row]


def report_html(title: str, rows: Sequence[Row], compared: Sequence[Row], cells: Path, grid: str, command: str) -> str:
    """The page.

    Args:
        title: of the page.
        rows: of ``results.csv``.
        compared: of ``comparisons.csv``.
        cells: the folder of the cells' folders, each with ``outcomes.csv`` and ``texts.jsonl``, or without.
        grid: the YAML of the grid.
        command: that ran it.
    """
    attacks = list(_attacks(rows, compared, cells))
    plotly, script = _plotly(), _source("page.js")
    page = _template().render(
        title=title,
        lines=lines(rows),
        columns=SHOWN,
        parts=PARTS,
        failed=[row for row in rows if row["error"]],
        done=sum(not row["error"] for row in rows),
        valid_asr=VALID_ASR,
        valid_loss=VALID_LOSS,
        scatter=_content(scatter(rows)),
        attacks=attacks,
        opened=next((attack for attack in attacks if attack.roc), None),
        grid=grid,
        command=command,
        latex=latex_table(rows),
        markdown=markdown_table(rows),
        style=_source("page.css"),
        script=script,
        plotly=plotly,
        allowed=" ".join(f"'sha256-{_digest(source)}'" for source in (script, plotly)),
    )
    return page.encode("utf-8", "replace").decode("utf-8")  # half a character of a broken text fits no file


def _attacks(rows: Sequence[Row], compared: Sequence[Row], cells: Path) -> Iterator[Attack]:
    """Those of which there is something to show, in the order in which they come first."""
    style = styles(row["defense"] for row in rows)
    places = NAMES[:3]
    groups: dict[tuple[str, ...], tuple[list[Row], list[Row]]] = {}
    for kind, of_kind in enumerate((rows, compared)):
        for row in of_kind:
            groups.setdefault(tuple(row[name] for name in places), ([], []))[kind].append(row)
    budget = TEXT_BUDGET / max(len({tuple(row[name] for name in NAMES) for row in rows}), 1)
    for (dataset, model, attack), (of_attack, of_pairs) in groups.items():
        detecting = [
            (row, outcomes) for row in of_attack if not row["error"] and (outcomes := _scored(cells / row["cell"]))
        ]
        if detecting or of_pairs:
            yield _attack((dataset, model, attack), detecting, of_pairs, cells, style, budget)


def _attack(
    names: tuple[str, str, str],
    detecting: list[tuple[Row, list[Outcome]]],
    compared: list[Row],
    cells: Path,
    style: Mapping[str, Style],
    budget: float,
) -> Attack:
    detectors: dict[str, Detector] = {}
    for row, outcomes in detecting:
        if row["defense"] not in detectors:
            texts, left_out = _texts(cells / row["cell"] / "texts.jsonl", budget)
            detectors[row["defense"]] = Detector(
                row["defense"], row["seed"], _content(histogram(outcomes)), texts, left_out
            )
    curves = [(row["defense"], row["seed"], outcomes) for row, outcomes in detecting]
    both = all(map(len, scores(outcome for _, outcomes in detecting for outcome in outcomes)))
    return Attack(names, _content(roc_curves(curves, style)) if both else None, list(detectors.values()), compared)


def _scored(cell: Path) -> list[Outcome] | None:
    """Outcomes of a cell that has scores."""
    path = cell / "outcomes.csv"
    outcomes = read_outcomes(path) if path.is_file() else []
    return outcomes if any(map(len, scores(outcomes))) else None


def _texts(path: Path, budget: float) -> tuple[list[dict[str, Any]], int]:
    """What is shown of a cell's texts, poisoned ones first, and how many are left out."""
    if not path.is_file():
        return [], 0
    with path.open(encoding="utf-8") as file:
        viewed: list[ViewedText] = [json.loads(line) for line in file]
    poisoned, clean = ([text for text in viewed if text["poisoned"] is kind] for kind in (True, False))
    shown: list[dict[str, Any]] = []
    # turn and turn about, so that a short budget leaves some of both
    for text in _in_turn(poisoned[:POISONED_TEXTS], clean[:CLEAN_TEXTS]):
        budget -= 300 + len(text["text"]) + len(text["purified_text"] or "") + 40 * len(text["tokens"])
        if shown and budget < 0:
            break
        shown.append({**text, "pieces": pieces(text["text"], text["tokens"], text["spans"])})
    return sorted(shown, key=lambda text: not text["poisoned"]), len(viewed) - len(shown)


def _in_turn(*kinds: Iterable[ViewedText]) -> Iterator[ViewedText]:
    waiting = [iter(kind) for kind in kinds]
    while waiting:
        for kind in list(waiting):
            try:
                yield next(kind)
            except StopIteration:
                waiting.remove(kind)


def _content(figure: Any) -> Any:
    """A figure as what the page's script hands to plotly."""
    return json.loads(figure.to_json())


@lru_cache(maxsize=1)
def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    source: str = get_plotlyjs()
    return source


def _source(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


def _digest(source: str) -> str:
    return base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()


@lru_cache(maxsize=1)
def _template() -> Template:
    loader = PackageLoader("lightning_backdoor.benchmark.report", "")
    environment = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template("page.html.jinja")
