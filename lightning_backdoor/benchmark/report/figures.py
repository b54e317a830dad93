"""The figures of the report, as input for plotly.js: their common style, and the trade-off of defenses.

Pages draw them by plotly.js, :mod:`lightning_backdoor.benchmark.report.figure_files` draws them into files.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any, NamedTuple

import numpy as np

from lightning_backdoor.benchmark.report.layout import CHARACTER_WIDTH, Points, label_positions, moved_apart
from lightning_backdoor.benchmark.summaries import Number, Summary
from lightning_backdoor.benchmark.table import NAMES

#: ``data`` and ``layout`` of plotly.js.
Figure = dict[str, Any]

# Okabe and Ito's colours without black and yellow, each of which is unreadable on one of the two backgrounds
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star", "pentagon", "triangle-down", "hourglass")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot", "4px,2px")
GREY = "#888888"
#: diameter of a mark, and widths in pixels that figures are laid out for: a page, a phone, a file.
MARK, WIDE, NARROW, PRINTED = 10, 800, 350, 600
#: the largest number of points that are labelled; more would only hide each other.
LABELLED = 48
MARGINS = {"l": 52, "r": 12, "t": 12, "b": 44}
LEGEND_LINE = 21
LAYOUT: Figure = {
    "margin": MARGINS,
    # transparent, so that the page's background shows, light or dark
    "paper_bgcolor": "rgba(0,0,0,0)",
    "plot_bgcolor": "rgba(0,0,0,0)",
    "dragmode": False,
    "barmode": "overlay",
    "bargap": 0,
    "font": {"family": "system-ui, sans-serif", "size": 12},
    "showlegend": True,
    "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "xanchor": "left"},
}


class Style(NamedTuple):
    """The style of a defense in all figures; successive defenses differ in colour, symbol and dash."""

    colour: str
    symbol: str
    dash: str


def styles(defenses: Iterable[str]) -> dict[str, Style]:
    """A style per defense, in the order in which the defenses first occur."""
    return {
        defense: Style(COLOURS[i % len(COLOURS)], SYMBOLS[i % len(SYMBOLS)], DASHES[i % len(DASHES)])
        for i, defense in enumerate(dict.fromkeys(defenses))
    }


def trade_off(summaries: Sequence[Summary], width: int = WIDE) -> Figure:
    """CACC against ASR after the defense: a labelled point per row of the table, with its spread or interval.

    Points that would cover each other are moved apart; a line leads to the true position, where the bars cross. Labels
    without room are left out, all of them if there are more than ``LABELLED`` points.

    Args:
        summaries: the lines of the table.
        width: width in pixels that the points and labels are laid out for.
    """
    axes = {"x": "asr_defended", "y": "cacc_defended"}
    lines = [line for line in summaries if {*axes.values()} <= {*line.numbers}]
    style = styles(summary.names["defense"] for summary in summaries)
    numbers = {axis: [line.numbers[metric] for line in lines] for axis, metric in axes.items()}
    ranges = {"x": [-0.03, 1.03], "y": _range(numbers["y"])}
    shown = [defense for defense in style if any(line.names["defense"] == defense for line in lines)]
    height = 300 + MARGINS["t"] + MARGINS["b"] + _legend_height(shown, width)
    canvas = _Canvas(ranges, (width - MARGINS["l"] - MARGINS["r"], 300))
    true = np.array([[n.mean for n in numbers[axis]] for axis in axes]).T.reshape(-1, 2)
    inset = MARK / 2 + 1  # no mark is cut at the edge
    drawn = moved_apart(canvas.pixels(true) - inset, MARK + 1, (canvas.size[0] - 2 * inset, 300 - 2 * inset)) + inset
    labels = _annotations(canvas, drawn, _point_labels(lines)) if len(lines) <= LABELLED else []
    drawn = np.where(np.abs(drawn - canvas.pixels(true)).max(axis=1, keepdims=True) > 0.5, canvas.values(drawn), true)
    traces: list[Figure] = [_leaders(true, drawn)]
    for defense in shown:
        of_defense = [i for i, line in enumerate(lines) if line.names["defense"] == defense]
        group = {"name": label(defense), "legendgroup": defense_group(style[defense]), "type": "scatter"}
        marks = {"color": style[defense].colour, "symbol": style[defense].symbol, "size": MARK}
        exact: Figure = {**group, "mode": "markers", "marker": {**marks, "size": 3}, "showlegend": False}
        for axis in axes:
            chosen = [numbers[axis][i] for i in of_defense]
            exact |= {axis: [n.mean for n in chosen], f"error_{axis}": _bars(chosen, style[defense].colour)}
        point = {
            "text": ["<br>".join(label(name) for name in reversed(lines[i].names.values())) for i in of_defense],
            "customdata": true[of_defense].tolist(),
            "hovertemplate": "%{text}<br>ASR %{customdata[0]:.3f}, CACC %{customdata[1]:.3f}<extra></extra>",
            **{axis: drawn[of_defense, i].tolist() for i, axis in enumerate(axes)},
        }
        traces += [{**exact, "hoverinfo": "skip"}, {**group, "mode": "markers", "marker": marks, **point}]
    x, y = (axis_of(f"{name} after the defense", ranges[axis]) for axis, name in (("x", "ASR"), ("y", "CACC")))
    return figure(traces, height, x, y, annotations=labels)


def label(name: str, longest: int = 40) -> str:
    """A name, shortened if long and escaped, since plotly interprets some HTML and ``%{...}``.

    >>> label("<b>%{x}")
    '&lt;b&gt;%&#123;x}'
    """
    line = " ".join(name.split())
    return escape(line if len(line) <= longest else f"{line[: longest - 1]}…", quote=False).replace("%{", "%&#123;")


def defense_group(style: Style) -> str:
    """The legend group of a defense, which its marks and curves have in common."""
    return " ".join(style)


def axis_of(title: str, bounds: list[float] | None = None, **more: Any) -> Figure:
    """An axis that does not move when the page is scrolled by touch."""
    axis: Figure = {"title": {"text": title}, "fixedrange": True, "zeroline": False, "automargin": True, **more}
    return axis if bounds is None else {**axis, "range": bounds}


def figure(traces: list[Figure], height: int, x: Figure, y: Figure, **layout: Any) -> Figure:
    """A figure of the common style.

    Args:
        traces: plotly's traces.
        height: height in pixels, including legend and margins.
        x: the x axis, see :func:`axis_of`.
        y: the y axis.
        **layout: further entries of the layout.
    """
    return {"data": traces, "layout": {**LAYOUT, "height": height, "xaxis": x, "yaxis": y, **layout}}


class _Canvas:
    """The area inside the axes: positions in pixels, downwards, of values."""

    def __init__(self, ranges: dict[str, list[float]], size: tuple[float, float]) -> None:
        self.size = size
        (left, right), (bottom, top) = ranges["x"], ranges["y"]
        self._origin = np.array([left, top])
        self._scale = np.array([size[0] / (right - left), -size[1] / (top - bottom)])

    def pixels(self, values: Points) -> Points:
        return np.asarray((values - self._origin) * self._scale)

    def values(self, pixels: Points) -> Points:
        return np.asarray(pixels / self._scale + self._origin)


def _point_labels(lines: Sequence[Summary]) -> list[str]:
    """The defense of each line, and those other names that differ between lines."""
    names = [name for name in reversed(NAMES) if name == "defense" or len({line.names[name] for line in lines}) > 1]
    return [", ".join(_short(line.names[name]) for name in names) for line in lines]


def _short(name: str) -> str:
    line = " ".join(name.split())
    return line if len(line) <= 20 else f"{line[:19]}…"


def _annotations(canvas: _Canvas, drawn: Points, texts: Sequence[str]) -> list[Figure]:
    result = []
    positions = label_positions(drawn, texts, MARK / 2 + 1, canvas.size)
    for (x, y), text, position in zip(canvas.values(drawn).tolist(), texts, positions, strict=True):
        if position is not None:
            line = {"arrowhead": 0, "arrowwidth": 0.75, "arrowcolor": GREY, "standoff": MARK / 2}
            far: Figure = {"ax": position.x, "ay": position.y, "showarrow": True, **line}
            shifted = far if position.far else {"xshift": position.x, "yshift": -position.y, "showarrow": False}
            anchor = {-1: "right", 0: "center", 1: "left"}[position.side]
            look = {"text": label(text, 200), "font": {"size": 11}, "borderpad": 1, "xanchor": anchor}
            result.append({"x": x, "y": y, "yanchor": "middle", **look, **shifted})
    return result


def _leaders(true: Points, drawn: Points) -> Figure:
    """Lines from the true positions of the points that have been moved."""
    x: list[float | None] = []
    y: list[float | None] = []
    for start, end in zip(true.tolist(), drawn.tolist(), strict=True):
        if start != end:
            x += [start[0], end[0], None]
            y += [start[1], end[1], None]
    line = {"color": GREY, "width": 1}
    return {"type": "scatter", "mode": "lines", "x": x, "y": y, "line": line, "showlegend": False, "hoverinfo": "skip"}


def _range(numbers: Sequence[Number]) -> list[float]:
    """A range that holds the numbers with their bars, and some room for labels."""
    ends = [n.mean + sign * _bar(n, end) for n in numbers for end, sign in ((0, -1), (1, 1))] or [0.0, 1.0]
    room = max(0.08 * (max(ends) - min(ends)), 0.02)
    return [min(ends) - room, max(ends) + room]


def _legend_height(names: Sequence[str], width: int) -> int:
    """Height of a legend that is broken into lines as wide as the figure, its entries all as wide as the longest."""
    widest = max((min(len(name), 40) * CHARACTER_WIDTH + 50 for name in names), default=1)
    per_line = max(1, int((width - MARGINS["l"] - MARGINS["r"]) // widest))
    return -(-len(names) // per_line) * LEGEND_LINE


def _bars(numbers: Sequence[Number], colour: str) -> Figure:
    arrays = {name: [_bar(number, end) for number in numbers] for name, end in (("array", 1), ("arrayminus", 0))}
    return {**arrays, "symmetric": False, "thickness": 1, "width": 0, "color": f"{colour}80"}  # half opaque


def _bar(number: Number, end: int) -> float:
    """Length of an error bar below (``end`` 0) or above (``end`` 1) the mean."""
    if number.interval is None:
        return number.spread or 0.0
    return max(number.interval[end] - number.mean if end else number.mean - number.interval[end], 0.0)
