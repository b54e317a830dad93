"""The table over seeds for a paper, as LaTeX and Markdown, with chosen columns and attacks.

``paper_table.js`` assembles the same text from the same cells when the reader of a page chooses others.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from itertools import accumulate, groupby
from typing import Any, NamedTuple

from lightning_backdoor.benchmark.metrics import BRIEF, NOT_SHARES, PARTS, Column
from lightning_backdoor.benchmark.report.markup import latex_text, markdown_text, needed_packages
from lightning_backdoor.benchmark.statistics import CONFIDENCE, SIGNIFICANT
from lightning_backdoor.benchmark.summaries import Number, Summary, range_text, shown_metrics
from lightning_backdoor.benchmark.table import ATTACK_NAMES
from lightning_backdoor.errors import InputError

#: the largest number of columns of numbers at the normal distance.
WIDE = 6


class Choice(NamedTuple):
    """What a table for a paper shows.

    Attributes:
        columns: names of metrics; None for the metrics of the terminal's table.
        attacks: names of attacks; None for all.
        percent: whether shares are given in percent.
        caption: the caption, plain text; None for one that says what the numbers are.
        label: the label in LaTeX; None for one made of the title.
    """

    columns: Sequence[str] | None = None
    attacks: Sequence[str] | None = None
    percent: bool = False
    caption: str | None = None
    label: str | None = None


DEFAULT = Choice()


class PaperTable:
    """The cells of a table for a paper, from which the text for any choice is assembled.

    Dataset and model have columns only if there are several; the caption names a single one.

    Args:
        summaries: the lines of the table.
        title: title of the report, for the label.
        choice: what is shown.

    Attributes:
        columns: the metrics that have numbers.
        chosen: names of the metrics that are shown.
        attacks: names of all attacks.
        chosen_attacks: names of the attacks that are shown.

    Raises:
        InputError: the choice names a column or an attack that there is not, or a label that LaTeX does not take.

    >>> print(PaperTable([]).markdown())
    Backdoor attacks and defenses.
    <BLANKLINE>
    | Attack | Defense |
    | --- | --- |
    """

    def __init__(self, summaries: Sequence[Summary], title: str = "", choice: Choice = DEFAULT) -> None:
        self.columns = shown_metrics(summaries)
        self.attacks = list(dict.fromkeys(summary.names["attack"] for summary in summaries))
        available = [metric.name for metric in self.columns]
        self.chosen = _chosen("columns", choice.columns, available) or [n for n in available if n in BRIEF] or available
        self.chosen_attacks = _chosen("attacks", choice.attacks, self.attacks) or self.attacks
        self.percent = choice.percent
        self.label = _label(title) if choice.label is None else choice.label
        if not re.fullmatch(r"[A-Za-z0-9:._/ -]+", self.label):
            raise InputError("label", f"{choice.label!r} is not a label of LaTeX", "give letters, digits and : . _ -")
        self._captions = {
            syntax: [
                escape(_caption(summaries, percent, tied) if choice.caption is None else choice.caption)
                for percent in (False, True)
            ]
            for syntax, escape, tied in (("latex", latex_text, "Underlined"), ("markdown", markdown_text, "Italic"))
        }
        several = [name for name in ("dataset", "model") if len({line.names[name] for line in summaries}) > 1]
        self._names = [*several, "attack", "defense"]
        self._lines = [self._line(summary) for summary in summaries]

    def latex(self) -> str:
        """The table in LaTeX, with ``booktabs``: best values are bold, those tied with the best underlined."""
        columns = [metric for metric in self.columns if metric.name in self.chosen]
        first = len(self._names)
        parts = [(part, len(list(group))) for part, group in groupby(columns, lambda metric: metric.part)]
        ends = accumulate((width for _, width in parts), initial=first)
        rules = [f"\\cmidrule(lr){{{end + 1}-{end + width}}}" for end, (_, width) in zip(ends, parts, strict=False)]
        titles = [""] * first + [f"\\multicolumn{{{width}}}{{c}}{{{PARTS[part]}}}" for part, width in parts]
        heads = [*map(str.capitalize, self._names), *(latex_text(metric.heading) for metric in columns)]
        body: list[str] = []
        before: list[str] = []
        for line in self._shown():
            if before and line["group"] != before:
                body.append(r"\midrule")
            names = line["latex"]["names"]
            names = ["" if line["group"] == before else name for name in names[:-1]] + names[-1:]
            failed = [f"\\multicolumn{{{len(columns)}}}{{l}}{{failed}}"]
            numbers = [line["latex"]["numbers"][metric.name][self.percent] for metric in columns]
            body.append(" & ".join([*names, *(failed if line["failed"] and columns else numbers)]) + r" \\")
            before = line["group"]
        lines = [
            r"\begin{table}",
            r"\centering",
            r"\scriptsize\setlength{\tabcolsep}{3pt}" if len(columns) > WIDE else r"\small",
            rf"\caption{{{self._captions['latex'][self.percent]}}}",
            f"\\label{{{self.label}}}",
            f"\\begin{{tabular}}{{{'l' * first}{'r' * len(columns)}}}",
            r"\toprule",
            *([" & ".join(titles) + r" \\", " ".join(rules)] if parts else []),
            " & ".join(heads) + r" \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
        return "\n".join([self._needs(), *lines])

    def markdown(self) -> str:
        """The table in GitHub's Markdown: best values are bold, those tied with the best italic."""
        columns = [metric for metric in self.columns if metric.name in self.chosen]
        rows = [[*map(str.capitalize, self._names), *(metric.title for metric in columns)]]
        rows.append(["---"] * len(self._names) + ["---:"] * len(columns))
        for line in self._shown():
            failed = ["failed", *[""] * (len(columns) - 1)]
            numbers = [line["markdown"]["numbers"][metric.name][self.percent] for metric in columns]
            rows.append([*line["markdown"]["names"], *(failed if line["failed"] and columns else numbers)])
        caption = self._captions["markdown"][self.percent]
        return "\n".join([caption, "", *(f"| {' | '.join(cells)} |" for cells in rows)])

    def as_json(self) -> dict[str, Any]:
        """All that ``paper_table.js`` needs."""
        columns = [
            {"name": c.name, "part": c.part, "latex": latex_text(c.heading), "markdown": c.title} for c in self.columns
        ]
        return {
            "needs": self._needs(),
            "names": [*map(str.capitalize, self._names)],
            "columns": columns,
            "parts": PARTS,
            "lines": self._lines,
            "captions": self._captions,
            "label": self.label,
            "wide": WIDE,
        }

    def _shown(self) -> list[dict[str, Any]]:
        return [line for line in self._lines if line["attack"] in self.chosen_attacks]

    def _needs(self) -> str:
        names = (name for line in self._lines for name in line["latex"]["names"])
        return needed_packages("".join([*names, *self._captions["latex"]]))

    def _line(self, summary: Summary) -> dict[str, Any]:
        names = [summary.names[name] for name in self._names]
        mark = f" ({summary.invalid})" if summary.invalid else ""
        group = [summary.names[name] for name in ATTACK_NAMES]
        line: dict[str, Any] = {"attack": summary.names["attack"], "group": group, "failed": summary.failed}
        for syntax, escape, shown in (("latex", latex_text, _latex), ("markdown", markdown_text, _markdown)):
            numbers = {metric.name: _shown(summary, metric, shown, escape) for metric in self.columns}
            texts = [
                escape(name) + (mark if axis == "attack" else "") for axis, name in zip(self._names, names, strict=True)
            ]
            line[syntax] = {"names": texts, "numbers": numbers}
        return line


def _chosen(option: str, names: Sequence[str] | None, available: Collection[str]) -> list[str]:
    for name in names or ():
        if name not in available:
            raise InputError(option, f"there is no {name!r}", f"give any of {', '.join(available)}")
    return [*(names or ())]


def _label(title: str) -> str:
    return "tab:" + (re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or "backdoors")


def _caption(summaries: Sequence[Summary], percent: bool, tied: str) -> str:
    """What the table shows, and what its numbers are; ``tied`` is the look of those not distinguishable."""
    where = ""
    for word, axis in (("on", "dataset"), ("with", "model")):
        if len(names := {line.names[axis] for line in summaries}) == 1:
            where += f" {word} {names.pop()}"
    numbers = [number for line in summaries for number in line.numbers.values()]
    said = [
        ("Shares are in percent.", percent),
        ("± is the standard deviation over seeds.", any(n.spread is not None for n in numbers)),
        (f"Ranges are {CONFIDENCE * 100:.0f} % intervals over texts.", any(n.interval for n in numbers)),
        (f"Bold: better than every other defense (p < {SIGNIFICANT}).", any(n.best for n in numbers)),
        (f"{tied}: not distinguishable from the best.", any(n.tied for n in numbers)),
    ]
    return " ".join([f"Backdoor attacks and defenses{where}.", *(text for text, holds in said if holds)])


def shown_number(number: Number, metric: Column, percent: bool) -> tuple[str, str]:
    """A number as shown, and its spread or interval as shown, which is empty if there is neither."""
    if not percent or metric.name in NOT_SHARES:
        return number.text, number.around
    text = f"{100 * number.mean:.1f}"
    if number.interval:
        low, high = number.interval
        return text, range_text((100 * low, 100 * high), 1)
    return text, "" if number.spread is None else f"±{100 * number.spread:.1f}"


def _shown(
    summary: Summary, metric: Column, shown: Callable[[str, str, Number], str], escape: Callable[[str], str]
) -> list[str]:
    """A cell without and with percent."""
    number = summary.numbers.get(metric.name)
    if number is None:
        return [escape("–")] * 2
    return [shown(*shown_number(number, metric, percent), number) for percent in (False, True)]


def _latex(text: str, around: str, number: Number) -> str:
    command = r"\textbf" if number.best else r"\underline" if number.tied else ""
    marked = f"{command}{{{text}}}" if command else text
    return rf"{marked} {{\scriptsize {latex_text(around)}}}" if around else marked


def _markdown(text: str, around: str, number: Number) -> str:
    mark = "**" if number.best else "*" if number.tied else ""
    return f"{mark}{text}{mark} {around}".rstrip()
