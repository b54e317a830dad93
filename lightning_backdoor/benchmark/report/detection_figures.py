"""The figures of how well a defense tells poisoned from clean texts: mean ROC curves, and histograms of scores."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightning_backdoor.benchmark.report.figures import (
    COLOURS,
    GREY,
    MARK,
    Figure,
    Style,
    axis_of,
    defense_group,
    figure,
    label,
)
from lightning_backdoor.benchmark.statistics import Interval, auroc, roc, split_scores
from lightning_backdoor.outputs.outcomes import Outcome
from lightning_backdoor.outputs.scores import can_be_drawn

#: maximum number of points of a curve.
POINTS = 200
BINS = 30
#: share of the scores at either end that is drawn in the outermost bars.
CLIPPED = 0.01
#: a logarithmic scale is used if more texts than this share fall into one bar otherwise, and clearly fewer then.
CROWDED, LESS_CROWDED = 0.4, 0.75
Scores = NDArray[np.float64]


class Curve(NamedTuple):
    """The ROC curve of one seed.

    Attributes:
        points: (FPR, TPR) at every threshold.
        threshold: FPR and TPR at the defense's threshold.
        auroc: area under the curve.
    """

    points: list[tuple[float, float]]
    threshold: tuple[float, float]
    auroc: float


def roc_curve(outcomes: Sequence[Outcome]) -> Curve | None:
    """The ROC curve of a test; None without scores of both clean and poisoned texts."""
    clean, poisoned = split_scores(outcomes)
    if not len(clean) or not len(poisoned):
        return None
    fpr, tpr = (float(np.mean([bool(o.flagged) for o in outcomes if o.poisoned is side])) for side in (False, True))
    return Curve(thinned(roc(clean, poisoned)), (fpr, tpr), float(auroc(clean, poisoned)))


def roc_figure(
    curves: Mapping[str, Sequence[Curve]], style: Mapping[str, Style], intervals: Mapping[str, Interval] | None = None
) -> Figure:
    """The mean ROC curve over seeds of each detector of one attack, with its threshold, and its AUROC in the legend.

    Curves are averaged vertically: the mean TPR at each FPR, with the standard deviation over seeds as a band.

    Args:
        curves: per defense, the curve of each seed.
        style: the style of each defense.
        intervals: the interval of the AUROC over texts, for defenses that have one seed.
    """
    chance = {"x": [0, 1], "y": [0, 1], "line": {"color": GREY, "width": 1}, "hoverinfo": "skip"}
    traces: list[Figure] = [{"type": "scatter", "mode": "lines", "showlegend": False, **chance}]
    for defense, of_seeds in curves.items():
        traces += _roc_traces(defense, of_seeds, style[defense], (intervals or {}).get(defense))
    height = 360 + 21 * len(curves)
    return figure(traces, height, axis_of("FPR", [-0.02, 1.02]), axis_of("TPR", [-0.02, 1.02]))


def histogram(outcomes: Sequence[Outcome]) -> Figure:
    """Scores of clean and of poisoned texts as shares of each, and the lowest score that is flagged.

    The first and the last bar also hold the lowest and the highest 1 % of the scores, so that outliers do not flatten
    the rest. Where the rest would still stand in a few bars, as perplexities do, the scale is logarithmic on both sides
    of zero. Infinite scores, and those that stand for them, are left out. The axis says all three.
    """
    sides = [scores[can_be_drawn(scores)] for scores in split_scores(outcomes)]
    scores = np.concatenate(sides)
    left_out = sum(outcome.score is not None for outcome in outcomes) - len(scores)
    low, high = np.quantile(scores, [CLIPPED, 1 - CLIPPED]) if len(scores) else (0.0, 1.0)
    scale = _scale(np.clip(scores, low, high))
    ends = _scaled(np.array([low, high if high > low else low + 1]), scale)
    edges = np.linspace(ends[0], ends[1], BINS + 1)
    middles = (edges[1:] + edges[:-1]) / 2
    traces = []
    for name, colour, pattern, side in zip(("clean", "poisoned"), COLOURS, ("", "/"), sides, strict=False):
        if len(side):
            counts, _ = np.histogram(np.clip(_scaled(side, scale), edges[0], edges[-1]), edges)
            bars = {"type": "bar", "name": name, "width": float(edges[1] - edges[0]), "opacity": 0.8}
            bars |= {"x": _rounded(middles), "y": _rounded(counts / len(side))}
            bars |= {"customdata": _rounded(_unscaled(middles, scale))}
            marker = {"color": colour, "line": {"width": 0}, "pattern": {"shape": pattern, "fgopacity": 1}}
            hover = f"{name}: %{{y:.1%}} about %{{customdata:.3g}}<extra></extra>"
            traces.append({**bars, "marker": marker, "hovertemplate": hover})
    clipped = bool(len(scores)) and bool((scores < low).any() or (scores > high).any())
    said = ", ".join(
        ["logarithmic"] * (scale is not None) + [f"the end bars hold the outer {CLIPPED * 100:.0f} %"] * clipped
    )
    title = f"score ({said})" if said else "score"
    if left_out:
        title += f"<br>{left_out} infinite {'score' if left_out == 1 else 'scores'} left out"
    x = axis_of(title, **({} if scale is None else _ticks(edges, scale)))
    flagged = [o.score for o in outcomes if o.flagged and o.score is not None and can_be_drawn(o.score)]
    at = np.clip(_scaled(np.array([min(flagged)]), scale), edges[0], edges[-1]).tolist() if flagged else []
    line = {"type": "line", "yref": "paper", "y0": 0, "y1": 1, "line": {"width": 1.5, "dash": "dot"}}
    shapes = [{**line, "x0": position, "x1": position} for position in at]
    return figure(traces, 260, x, {**axis_of("share of texts"), "tickformat": ".0%"}, shapes=shapes)


def thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most ``POINTS`` of some points, including the first and the last.

    >>> thinned([(i / 1000, 1.0) for i in range(1001)])[-1]
    (1.0, 1.0)
    """
    kept = np.linspace(0, len(points) - 1, min(len(points), POINTS)).round().astype(int)
    return [points[i] for i in kept]


def mean_curve(curves: Sequence[Curve]) -> tuple[Scores, Scores, Scores]:
    """The mean of some curves: FPR, mean TPR, and standard deviation of the TPR (0 for one curve); (points,) each."""
    if len(curves) == 1:
        x, y = np.array(curves[0].points).T
        return x, y, np.zeros(len(x))
    grid = np.unique(np.concatenate([[x for x, _ in curve.points] for curve in curves]))
    grid = grid[np.linspace(0, len(grid) - 1, min(len(grid), POINTS)).round().astype(int)]
    heights = np.array([np.interp(grid, *np.array(curve.points).T) for curve in curves])
    mean, spread = heights.mean(axis=0), heights.std(axis=0, ddof=1)
    return np.append(0.0, grid), np.append(0.0, mean), np.append(0.0, spread)


def _roc_traces(defense: str, curves: Sequence[Curve], style: Style, interval: Interval | None) -> list[Figure]:
    """The band, the curve and the mark at the threshold of one detector."""
    name = f"{label(defense)}, AUROC {_area(curves, interval)}"
    common = {"type": "scatter", "name": name, "legendgroup": defense_group(style)}
    x, y, spread = mean_curve(curves)
    traces = []
    if len(curves) > 1:
        around = {"x": _rounded([*x, *x[::-1]]), "y": _rounded(np.clip([*(y + spread), *(y - spread)[::-1]], 0, 1))}
        band = {"mode": "lines", "line": {"width": 0}, "fill": "toself", "fillcolor": f"{style.colour}26"}
        traces.append({**common, **around, **band, "hoverinfo": "skip", "showlegend": False})
    curve: Figure = {
        "mode": "lines",
        "line": {"color": style.colour, "dash": style.dash, "width": 2},
        "showlegend": True,
    }
    mark: Figure = {"mode": "markers", "marker": {"color": style.colour, "symbol": style.symbol, "size": MARK}}
    threshold = ([statistics.mean(of_curves)] for of_curves in zip(*(c.threshold for c in curves), strict=True))
    mark["showlegend"] = False
    fpr, tpr = threshold
    for look, across, up, what in ((curve, x, y, ""), (mark, fpr, tpr, ", threshold")):
        over = "" if len(curves) == 1 else f", mean of {len(curves)} seeds"
        hover = f"{label(defense)}{what}{over}<br>FPR %{{x:.3f}}, TPR %{{y:.3f}}<extra></extra>"
        traces.append({**common, **look, "x": _rounded(across), "y": _rounded(up), "hovertemplate": hover})
    return traces


def _area(curves: Sequence[Curve], interval: Interval | None) -> str:
    """The AUROC as shown: mean and standard deviation over seeds, or the interval over texts."""
    areas = [curve.auroc for curve in curves]
    if len(areas) > 1:
        return f"{statistics.mean(areas):.3f} ±{statistics.stdev(areas):.3f}"
    return f"{areas[0]:.3f}" + ("" if interval is None else f" ({interval.low:.2f}–{interval.high:.2f})")


def _scale(scores: Scores) -> float | None:
    """Where a logarithmic scale begins on both sides of zero; None for a linear scale."""
    sizes = np.abs(scores[scores != 0])
    if not len(sizes):
        return None
    begins = float(10 ** np.floor(np.log10(np.quantile(sizes, 0.25))))
    fullest = [_fullest_bin(_scaled(scores, scale)) for scale in (None, begins)]
    return begins if fullest[0] > CROWDED and fullest[1] < LESS_CROWDED * fullest[0] else None


def _fullest_bin(values: Scores) -> float:
    return float(np.histogram(values, BINS)[0].max() / len(values))


def _scaled(values: Scores, scale: float | None) -> Scores:
    return values if scale is None else np.arcsinh(values / scale)


def _unscaled(values: Scores, scale: float | None) -> Scores:
    return values if scale is None else np.sinh(values) * scale


def _ticks(edges: Scores, scale: float) -> Figure:
    """Ticks at zero and at powers of ten."""
    low, high = _unscaled(edges[[0, -1]], scale)
    largest = np.log10(max(abs(low), abs(high), scale))
    powers = 10.0 ** np.arange(np.log10(scale), largest + 1e-9, max(1, np.ceil((largest - np.log10(scale)) / 4)))
    values = np.array([*-powers[::-1], 0.0, *powers])
    values = values[(values >= low) & (values <= high)]
    return {
        "tickvals": _rounded(_scaled(values, scale)),
        "ticktext": [f"{value:g}".replace("-", "−") for value in values],
    }


def _rounded(values: Iterable[float] | Scores) -> list[float]:
    return [float(f"{value:.4g}") for value in values]
