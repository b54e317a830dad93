"""The plots of a benchmark, as plotly figures: what defenses cost and gain, ROC curves, scores."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightning_backdoor.benchmark.report.roc import roc
from lightning_backdoor.benchmark.table import Row, Summary, over_seeds
from lightning_backdoor.outputs.outcomes import Outcome

# Okabe and Ito's colours without black and yellow, which one of the two backgrounds swallows
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star", "pentagon", "triangle-down", "hourglass")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot", "4px,2px")
#: points of a curve at most.
POINTS = 200
BINS = 30


class Style(NamedTuple):
    """How a defense is drawn in all plots: alike in none of colour, symbol and dashes to its neighbours."""

    colour: str
    symbol: str
    dash: str


def styles(defenses: Iterable[str]) -> dict[str, Style]:
    """A style a defense, in the order in which they come first."""
    names = dict.fromkeys(defenses)
    return {
        name: Style(COLOURS[i % len(COLOURS)], SYMBOLS[i % len(SYMBOLS)], DASHES[i % len(DASHES)])
        for i, name in enumerate(names)
    }


def scatter(rows: Iterable[Row]) -> Any:
    """CACC against ASR after the defense: a point a line of the table, with its spread over seeds or its interval."""
    summaries = over_seeds(rows)
    traces = []
    for defense, style in styles(summary.names["defense"] for summary in summaries).items():
        points = [
            summary
            for summary in summaries
            if summary.names["defense"] == defense
            and None not in (summary.means["asr_defended"], summary.means["cacc_defended"])
        ]
        if not points:
            continue
        trace: dict[str, Any] = {
            "type": "scatter",
            "mode": "markers",
            "name": label(defense),
            "text": ["<br>".join(label(name) for name in reversed(point.names.values())) for point in points],
            "hovertemplate": "%{text}<br>ASR %{x:.3f}, CACC %{y:.3f}<extra></extra>",
            "marker": {"color": style.colour, "symbol": style.symbol, "size": 10},
        }
        see_through = f"rgba({', '.join(str(int(style.colour[i : i + 2], 16)) for i in (1, 3, 5))}, 0.5)"
        for axis, metric in (("x", "asr_defended"), ("y", "cacc_defended")):
            trace[axis] = [point.means[metric] for point in points]
            low, high = zip(*(_around(point, metric) for point in points), strict=True)
            bars = {"array": high, "arrayminus": low, "symmetric": False}
            trace[f"error_{axis}"] = {**bars, "color": see_through, "thickness": 1, "width": 0}
        traces.append(trace)
    return _figure(traces, 420, _axis("ASR after the defense", [-0.03, 1.03]), _axis("CACC after the defense"))


def roc_curves(curves: Iterable[tuple[str, int, Sequence[Outcome]]], style: Mapping[str, Style]) -> Any:
    """Curves of detectors of one attack, each with the point of its threshold.

    Args:
        curves: defense, seed and outcomes with scores.
        style: of each defense.
    """
    chance = {"x": [0, 1], "y": [0, 1], "line": {"color": "#888888", "width": 1}, "hoverinfo": "skip"}
    traces: list[dict[str, Any]] = [{"type": "scatter", "mode": "lines", "showlegend": False, **chance}]
    named: set[str] = set()
    for defense, seed, outcomes in curves:
        points = np.array(thinned(roc(*scores(outcomes))))
        if not len(points):
            continue
        drawn, name = style[defense], label(defense)
        fpr, tpr = (np.mean([bool(o.flagged) for o in outcomes if o.poisoned is kind]) for kind in (False, True))
        of_both = {"type": "scatter", "name": name, "legendgroup": " ".join(drawn)}
        curve = {
            "mode": "lines",
            "x": _short(points[:, 0]),
            "y": _short(points[:, 1]),
            "showlegend": defense not in named,
            "line": {"color": drawn.colour, "dash": drawn.dash, "width": 2},
            "hovertemplate": f"{name}, seed {seed}<br>FPR %{{x:.3f}}, TPR %{{y:.3f}}<extra></extra>",
        }
        at_threshold = {
            "mode": "markers",
            "x": [float(fpr)],
            "y": [float(tpr)],
            "showlegend": False,
            "marker": {"color": drawn.colour, "symbol": drawn.symbol, "size": 10},
            "hovertemplate": f"{name}, seed {seed}, threshold<br>FPR %{{x:.3f}}, TPR %{{y:.3f}}<extra></extra>",
        }
        traces += [{**of_both, **curve}, {**of_both, **at_threshold}]
        named.add(defense)
    return _figure(traces, 380, _axis("FPR", [-0.02, 1.02]), _axis("TPR", [-0.02, 1.02]))


def histogram(outcomes: Sequence[Outcome]) -> Any:
    """Scores of clean and of poisoned texts, as shares of each, and the lowest score that is flagged.

    The hundredth part of scores at either end is in the last bins, so that no outlier flattens the rest.
    """
    kinds = [kind[np.isfinite(kind)] for kind in scores(outcomes)]
    every = np.concatenate(kinds)
    low, high = np.quantile(every, [0.01, 0.99]) if len(every) else (0.0, 1.0)
    edges = np.linspace(low, high if high > low else low + 1, BINS + 1)
    traces = []
    looks = (("clean", COLOURS[0], ""), ("poisoned", COLOURS[1], "/"))
    for (name, colour, pattern), kind in zip(looks, kinds, strict=True):
        if not len(kind):
            continue
        counts, _ = np.histogram(np.clip(kind, edges[0], edges[-1]), edges)
        bars = {
            "type": "bar",
            "name": name,
            "x": _short((edges[1:] + edges[:-1]) / 2),
            "y": _short(counts / len(kind)),
            "width": float(edges[1] - edges[0]),
            "opacity": 0.85,
            "marker": {"color": colour, "line": {"width": 0}, "pattern": {"shape": pattern, "fgopacity": 1}},
            "hovertemplate": f"{name}: %{{y:.1%}} about %{{x:.3g}}<extra></extra>",
        }
        traces.append(bars)
    flagged = [o.score for o in outcomes if o.flagged and o.score is not None and np.isfinite(o.score)]
    at = [float(np.clip(min(flagged), edges[0], edges[-1]))] if flagged else []
    line = {"type": "line", "yref": "paper", "y0": 0, "y1": 1, "line": {"width": 1.5, "dash": "dot"}}
    shares = {**_axis("share of texts"), "tickformat": ".0%"}
    return _figure(traces, 260, _axis("score"), shares, shapes=[{**line, "x0": x, "x1": x} for x in at])


def scores(outcomes: Iterable[Outcome]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Those of clean and those of poisoned texts, where there are any."""
    found: tuple[list[float], list[float]] = ([], [])
    for outcome in outcomes:
        if outcome.score is not None and not np.isnan(outcome.score):
            found[outcome.poisoned].append(outcome.score)
    return np.array(found[0], dtype=np.float64), np.array(found[1], dtype=np.float64)


def thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """``POINTS`` of them at most, the first and the last among them.

    >>> thinned([(i / 1000, 1.0) for i in range(1001)])[-1]
    (1.0, 1.0)
    """
    kept = np.linspace(0, len(points) - 1, min(len(points), POINTS)).round().astype(int)
    return [points[i] for i in kept]


def label(name: str) -> str:
    """A name that plotly, which reads some HTML and fills in ``%{...}`` in its labels, shows as it is, if not too long.

    >>> label("<b>%{x}")
    '&lt;b&gt;%&#123;x}'
    """
    line = " ".join(name.split())
    return escape(line if len(line) <= 40 else f"{line[:39]}…", quote=False).replace("%{", "%&#123;")


def _around(point: Summary, metric: str) -> tuple[float, float]:
    """How far it goes below and above."""
    mean, spread = point.means[metric], point.spreads[metric] or 0.0
    if mean is None or metric not in point.intervals:
        return spread, spread
    low, high = point.intervals[metric]
    return max(mean - low, 0.0), max(high - mean, 0.0)


def _short(values: NDArray[np.float64]) -> list[float]:
    return [float(f"{value:.4g}") for value in values]


def _axis(title: str, bounds: list[float] | None = None) -> dict[str, Any]:
    """Fixed: a finger that scrolls the page moves no plot."""
    return {"title": {"text": title}, "range": bounds, "fixedrange": True, "zeroline": False, "automargin": True}


def _figure(traces: list[dict[str, Any]], height: int, x: dict[str, Any], y: dict[str, Any], **layout: Any) -> Any:
    """Without a background of its own, so that the page's shows in light and in dark."""
    import plotly.graph_objects as go  # takes a second

    ours = {
        "template": "none",
        "height": height,
        "margin": {"l": 48, "r": 12, "t": 12, "b": 44},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "dragmode": False,
        "barmode": "overlay",
        "bargap": 0,
        "font": {"family": "system-ui, sans-serif", "size": 12},
        "showlegend": True,
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "xanchor": "left"},
    }
    return go.Figure(data=traces, layout={**ours, "xaxis": x, "yaxis": y, **layout})
