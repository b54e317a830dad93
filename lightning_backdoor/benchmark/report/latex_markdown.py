"""The table as text to copy: LaTeX for a paper, Markdown for a page."""

from __future__ import annotations

import re
from collections.abc import Iterable

from lightning_backdoor.benchmark.report.columns import PARTS, SHOWN, Column, Line, lines
from lightning_backdoor.benchmark.table import NAMES, Row

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
    "[": "{[}",  # after a line's end it would be an argument
    "*": "{*}",  # and so would this
}


def latex_table(rows: Iterable[Row]) -> str:
    """The table over seeds for ``booktabs``: metrics that no line has are left out, the best is bold.

    >>> latex_table([]).splitlines()[1]
    '\\\\begin{tabular}{llll}'
    """
    shown, table = _with_numbers(rows)
    parts = list(dict.fromkeys(column.part for column in shown))
    spans, start = [], len(NAMES) + 1
    for part in parts:
        width = sum(column.part == part for column in shown)
        spans.append((PARTS[part], width, start))
        start += width
    heads = [f"\\multicolumn{{{width}}}{{c}}{{{part}}}" for part, width, _ in spans]
    body = [_latex_line(line, shown) for line in table]
    return "\n".join(
        [
            r"% needs \usepackage{booktabs}",
            f"\\begin{{tabular}}{{{'l' * len(NAMES)}{'r' * len(shown)}}}",
            r"\toprule",
            *([" & ".join([" & " * (len(NAMES) - 1), *heads]) + r" \\"] if heads else []),
            *([" ".join(f"\\cmidrule(lr){{{at}-{at + width - 1}}}" for _, width, at in spans)] if heads else []),
            " & ".join([*(name.capitalize() for name in NAMES), *(column.head for column in shown)]) + r" \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
        ]
    )


def markdown_table(rows: Iterable[Row]) -> str:
    """The table over seeds as GitHub takes it: metrics that no line has are left out, the best is bold.

    >>> print(markdown_table([]))
    | Dataset | Model | Attack | Defense |
    | --- | --- | --- | --- |
    """
    shown, table = _with_numbers(rows)
    heads = [*(name.capitalize() for name in NAMES), *(_markdown_head(column) for column in shown)]
    rule = ["---"] * len(NAMES) + ["---:"] * len(shown)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heads, rule, *(_markdown(line, shown) for line in table)))


def _with_numbers(rows: Iterable[Row]) -> tuple[list[Column], list[Line]]:
    table = lines(rows)
    shown = [column for i, column in enumerate(SHOWN) if any(line.entries[i] for line in table)]
    return shown, table


def _latex_line(line: Line, shown: list[Column]) -> str:
    names = [_latex(name) for name in line.summary.names.values()]
    if line.invalid:
        names[2] += f" ({line.invalid})"
    numbers = []
    for column, entry in zip(SHOWN, line.entries, strict=True):
        if column in shown:
            text = f"\\textbf{{{entry.text}}}" if entry and entry.best else entry.text if entry else "--"
            numbers.append(f"{text} {{\\scriptsize {_latex(entry.around)}}}" if entry and entry.around else text)
    if line.failed and shown:
        numbers = [f"\\multicolumn{{{len(shown)}}}{{l}}{{failed}}"]
    return " & ".join([*names, *numbers]) + r" \\"


def _markdown(line: Line, shown: list[Column]) -> list[str]:
    names = [_escaped(name) for name in line.summary.names.values()]
    if line.invalid:
        names[2] += f" ({line.invalid})"
    numbers = []
    for column, entry in zip(SHOWN, line.entries, strict=True):
        if column in shown:
            text = f"**{entry.text}**" if entry and entry.best else entry.text if entry else "–"
            numbers.append(f"{text} {entry.around}" if entry and entry.around else text)
    return [*names, *(["failed", *[""] * (len(shown) - 1)] if line.failed and shown else numbers)]


def _markdown_head(column: Column) -> str:
    """With the part where the name alone says too little."""
    return f"{column.head} defended" if column.part == "defended" else column.head


def _latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in " ".join(text.split()))


def _escaped(text: str) -> str:
    """Nothing of it is Markdown or HTML; on one line."""
    return re.sub(r"([\\`*_\[\]<>|~$&])", r"\\\1", " ".join(text.split()))
