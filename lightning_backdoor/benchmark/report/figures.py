"""The plots of the report, as input for plotly.js: trade-off of defenses, ROC curves, histograms of scores."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightning_backdoor.benchmark.statistics import roc, split_scores
from lightning_backdoor.benchmark.summaries import Number, Summary
from lightning_backdoor.outputs.outcomes import Outcome

#: ``data`` and ``layout`` of plotly.js.
Figure = dict[str, Any]

# Okabe and Ito's colours without black and yellow, each of which is unreadable on one of the two backgrounds
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star", "pentagon", "triangle-down", "hourglass")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot", "4px,2px")
#: maximum number of points of a curve.
POINTS = 200
BINS = 30
LAYOUT: Figure = {
    "margin": {"l": 48, "r": 12, "t": 12, "b": 44},
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
    """The style of a defense in all plots; successive defenses differ in colour, symbol and dash."""

    colour: str
    symbol: str
    dash: str


def styles(defenses: Iterable[str]) -> dict[str, Style]:
    """A style per defense, in the order in which the defenses first occur."""
    return {
        defense: Style(COLOURS[i % len(COLOURS)], SYMBOLS[i % len(SYMBOLS)], DASHES[i % len(DASHES)])
        for i, defense in enumerate(dict.fromkeys(defenses))
    }


def trade_off(summaries: Sequence[Summary]) -> Figure:
    """CACC against ASR after the defense: a point per row of the table, with its spread or interval."""
    traces = []
    axes = {"x": "asr_defended", "y": "cacc_defended"}
    for defense, style in styles(summary.names["defense"] for summary in summaries).items():
        lines = [line for line in summaries if line.names["defense"] == defense and {*axes.values()} <= {*line.numbers}]
        trace: Figure = {
            "type": "scatter",
            "mode": "markers",
            "name": label(defense),
            "text": ["<br>".join(label(name) for name in reversed(line.names.values())) for line in lines],
            "hovertemplate": "%{text}<br>ASR %{x:.3f}, CACC %{y:.3f}<extra></extra>",
            "marker": {"color": style.colour, "symbol": style.symbol, "size": 10},
        }
        for axis, metric in axes.items():
            numbers = [line.numbers[metric] for line in lines]
            bars = {"array": [_bar(number, 1) for number in numbers], "symmetric": False, "thickness": 1, "width": 0}
            bars |= {"arrayminus": [_bar(number, 0) for number in numbers], "color": f"{style.colour}80"}  # half opaque
            trace |= {axis: [number.mean for number in numbers], f"error_{axis}": bars}
        traces += [trace] if lines else []
    return _figure(traces, 420, _axis("ASR after the defense", [-0.03, 1.03]), _axis("CACC after the defense"))


def roc_traces(defense: str, seed: str, outcomes: Sequence[Outcome], style: Style) -> list[Figure]:
    """The ROC curve of a detector that has scores of clean and of poisoned texts, and a mark at its threshold."""
    name = label(defense)
    threshold = [float(np.mean([bool(o.flagged) for o in outcomes if o.poisoned is side])) for side in (False, True)]
    curve = {"mode": "lines", "line": {"color": style.colour, "dash": style.dash, "width": 2}}
    mark = {"mode": "markers", "marker": {"color": style.colour, "symbol": style.symbol, "size": 10}}
    traces = []
    for drawn, xy, what in ((curve, thinned(roc(*split_scores(outcomes))), ""), (mark, [threshold], ", threshold")):
        hover = f"{name}, seed {seed}{what}<br>FPR %{{x:.3f}}, TPR %{{y:.3f}}<extra></extra>"
        legend = {"name": name, "legendgroup": " ".join(style)}
        coordinates = {"x": _short(x for x, _ in xy), "y": _short(y for _, y in xy)}
        traces.append({"type": "scatter", **drawn, **legend, **coordinates, "hovertemplate": hover})
    return traces


def roc_figure(curves: Sequence[Figure]) -> Figure:
    """The curves of the detectors of one attack; the legend has each detector once."""
    chance = {"x": [0, 1], "y": [0, 1], "line": {"color": "#888888", "width": 1}, "hoverinfo": "skip"}
    traces: list[Figure] = [{"type": "scatter", "mode": "lines", "showlegend": False, **chance}]
    groups = [trace["legendgroup"] for trace in curves]
    traces += [{**trace, "showlegend": groups.index(trace["legendgroup"]) == i} for i, trace in enumerate(curves)]
    return _figure(traces, 380, _axis("FPR", [-0.02, 1.02]), _axis("TPR", [-0.02, 1.02]))


def histogram(outcomes: Sequence[Outcome]) -> Figure:
    """Scores of clean and of poisoned texts as shares of each, and the lowest score that is flagged.

    The first and the last bin also hold the lowest and the highest 1 % of the scores, so that outliers do not flatten
    the rest.
    """
    sides = [scores[np.isfinite(scores)] for scores in split_scores(outcomes)]
    scores = np.concatenate(sides)
    low, high = np.quantile(scores, [0.01, 0.99]) if len(scores) else (0.0, 1.0)
    edges = np.linspace(low, high if high > low else low + 1, BINS + 1)
    traces = []
    for name, colour, pattern, side in zip(("clean", "poisoned"), COLOURS, ("", "/"), sides, strict=False):
        if len(side):
            counts, _ = np.histogram(np.clip(side, edges[0], edges[-1]), edges)
            bars = {"type": "bar", "name": name, "width": float(edges[1] - edges[0]), "opacity": 0.85}
            bars |= {"x": _short((edges[1:] + edges[:-1]) / 2), "y": _short(counts / len(side))}
            marker = {"color": colour, "line": {"width": 0}, "pattern": {"shape": pattern, "fgopacity": 1}}
            hover = f"{name}: %{{y:.1%}} about %{{x:.3g}}<extra></extra>"
            traces.append({**bars, "marker": marker, "hovertemplate": hover})
    flagged = [o.score for o in outcomes if o.flagged and o.score is not None and np.isfinite(o.score)]
    figure = _figure(traces, 260, _axis("score"), {**_axis("share of texts"), "tickformat": ".0%"})
    if flagged:
        x = float(np.clip(min(flagged), edges[0], edges[-1]))
        line = {"type": "line", "yref": "paper", "y0": 0, "y1": 1, "line": {"width": 1.5, "dash": "dot"}}
        figure["layout"]["shapes"] = [{**line, "x0": x, "x1": x}]
    return figure


def thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most ``POINTS`` of some points, including the first and the last.

    >>> thinned([(i / 1000, 1.0) for i in range(1001)])[-1]
    (1.0, 1.0)
    """
    kept = np.linspace(0, len(points) - 1, min(len(points), POINTS)).round().astype(int)
    return [points[i] for i in kept]


def label(name: str) -> str:
    """A name, shortened if long and escaped, since plotly interprets some HTML and ``%{...}``.

    >>> label("<b>%{x}")
    '&lt;b&gt;%&#123;x}'
    """
    line = " ".join(name.split())
    return escape(line if len(line) <= 40 else f"{line[:39]}…", quote=False).replace("%{", "%&#123;")


def _bar(number: Number, end: int) -> float:
    """Length of an error bar below (``end`` 0) or above (``end`` 1) the mean."""
    if number.interval is None:
        return number.spread or 0.0
    return max(number.interval[end] - number.mean if end else number.mean - number.interval[end], 0.0)


def _short(values: Iterable[float] | NDArray[np.float64]) -> list[float]:
    return [float(f"{value:.4g}") for value in values]


def _axis(title: str, bounds: list[float] | None = None) -> Figure:
    """An axis that does not move when the page is scrolled by touch."""
    axis: Figure = {"title": {"text": title}, "fixedrange": True, "zeroline": False, "automargin": True}
    return axis if bounds is None else {**axis, "range": bounds}


def _figure(traces: list[Figure], height: int, x: Figure, y: Figure) -> Figure:
    return {"data": traces, "layout": {**LAYOUT, "height": height, "xaxis": x, "yaxis": y}}
