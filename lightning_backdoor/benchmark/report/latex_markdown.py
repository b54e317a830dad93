"""The table over seeds as LaTeX and Markdown."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, groupby

from lightning_backdoor.benchmark.metrics import PARTS, Column
from lightning_backdoor.benchmark.summaries import Number, Summary, shown_metrics
from lightning_backdoor.benchmark.table import NAMES

_LATEX = {
    **{character: f"\\{character}" for character in "{}$&#%_"},
    "\\": r"\textbackslash{}",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "±": r"\ensuremath{\pm}",
    "–": "--",
    "[": "{[}",  # after the end of a line it would start an argument
    "*": "{*}",  # likewise
}
_NAME_HEADINGS = [name.capitalize() for name in NAMES]


def latex_table(summaries: Sequence[Summary]) -> str:
    """The table in LaTeX with ``booktabs``, without metrics that have no value; best values bold, tied ones underlined.

    >>> latex_table([]).splitlines()[1]
    '\\\\begin{tabular}{llll}'
    """
    metrics = shown_metrics(summaries)
    parts = [(PARTS[part], len(list(group))) for part, group in groupby(metrics, lambda metric: metric.part)]
    ends = accumulate((width for _, width in parts), initial=len(NAMES))
    rules = [f"\\cmidrule(lr){{{end + 1}-{end + width}}}" for end, (_, width) in zip(ends, parts, strict=False)]
    titles = [""] * len(NAMES) + [f"\\multicolumn{{{width}}}{{c}}{{{title}}}" for title, width in parts]
    failed = [f"\\multicolumn{{{len(metrics)}}}{{l}}{{failed}}"]
    body = _cells(summaries, metrics, _latex, _latex_number, failed)
    return "\n".join(
        [
            r"% needs \usepackage{booktabs}",
            f"\\begin{{tabular}}{{{'l' * len(NAMES)}{'r' * len(metrics)}}}",
            r"\toprule",
            *([" & ".join(titles) + r" \\", " ".join(rules)] if parts else []),
            " & ".join([*_NAME_HEADINGS, *(_latex(metric.heading) for metric in metrics)]) + r" \\",
            r"\midrule",
            *(" & ".join(cells) + r" \\" for cells in body),
            r"\bottomrule",
            r"\end{tabular}",
        ]
    )


def markdown_table(summaries: Sequence[Summary]) -> str:
    """The table in GitHub's Markdown, without metrics that have no value; best values bold, tied ones italic.

    >>> print(markdown_table([]))
    | Dataset | Model | Attack | Defense |
    | --- | --- | --- | --- |
    """
    metrics = shown_metrics(summaries)
    head = [*_NAME_HEADINGS, *(metric.title for metric in metrics)]
    rule = ["---"] * len(NAMES) + ["---:"] * len(metrics)
    body = _cells(summaries, metrics, _markdown, _markdown_number, ["failed", *[""] * (len(metrics) - 1)])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *body))


def _cells(
    summaries: Sequence[Summary],
    metrics: Sequence[Column],
    escape: Callable[[str], str],
    shown: Callable[[Number], str],
    failed: list[str],
) -> Iterator[list[str]]:
    """The cells of each line; ``failed`` replaces the numbers of a line without numbers."""
    for summary in summaries:
        names = [escape(name) for name in summary.names.values()]
        if summary.invalid:
            names[2] += f" ({summary.invalid})"
        numbers = [summary.numbers.get(metric.name) for metric in metrics]
        cells = [escape("–") if number is None else shown(number) for number in numbers]
        yield [*names, *(failed if summary.failed and metrics else cells)]


def _latex_number(number: Number) -> str:
    command = r"\textbf" if number.best else r"\underline" if number.tied else ""
    text = f"{command}{{{number.text}}}" if command else number.text
    return rf"{text} {{\scriptsize {_latex(number.around)}}}" if number.around else text


def _markdown_number(number: Number) -> str:
    mark = "**" if number.best else "*" if number.tied else ""
    text = f"{mark}{number.text}{mark}"
    return f"{text} {number.around}" if number.around else text


def _latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in " ".join(text.split()))


def _markdown(text: str) -> str:
    """A text on one line, with Markdown and HTML markup escaped."""
    return re.sub(r"([\\`*_\[\]<>|~$&])", r"\\\1", " ".join(text.split()))
