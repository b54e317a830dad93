"""Figures as SVG and PDF files, drawn by matplotlib without a browser."""

from __future__ import annotations

import html
import io
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_backdoor.benchmark.report.figures import DASHES, PRINTED, SYMBOLS, Figure
from lightning_backdoor.outputs.progress import tracked

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.container import BarContainer

#: the formats, and the entry of their metadata that would differ between two runs.
FORMATS = {"svg": "Date", "pdf": "CreationDate"}
#: plotly's symbols and dashes in matplotlib.
MARKERS = dict(zip(SYMBOLS, ("o", "s", "D", "^", "P", "X", "*", "p", "v", "d"), strict=True))
LINES: dict[str, Any] = dict(
    zip(DASHES, ("-", "--", ":", "-.", (0, (8, 3)), (0, (8, 3, 1, 3)), (0, (4, 2))), strict=True)
)
#: where a line meets a label, by the label's anchor.
RELATIVE = {"left": (0, 0.5), "center": (0.5, 0.5), "right": (1, 0.5)}
#: plotly's pixels per inch, and points per pixel.
DPI = 96
POINT = 72 / DPI
#: fonts stay text in SVG and TrueType in PDF, which publishers ask for; ids do not differ between runs.
SETTINGS = {"svg.fonttype": "none", "pdf.fonttype": 42, "svg.hashsalt": "", "font.size": 9, "hatch.linewidth": 0.6}


def write_figures(folder: Path, figures: Mapping[str, Figure]) -> None:
    """Writes ``NAME.svg`` and ``NAME.pdf`` of each figure into a folder, which is created if needed.

    Args:
        folder: the folder.
        figures: the figures by name, in the form of plotly.js.
    """
    if figures:
        folder.mkdir(exist_ok=True)
    for name, figure in tracked(figures.items(), "drawing figures", "figures"):
        for ending, content in figure_files(figure).items():
            (folder / f"{name}.{ending}").write_bytes(content)


def figure_files(figure: Figure) -> dict[str, bytes]:
    """A figure drawn on white, as the bytes of each of ``FORMATS``; the same bytes each time.

    Args:
        figure: a figure of :mod:`lightning_backdoor.benchmark.report`, in the form of plotly.js.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure as Canvas

    result = {}
    with rc_context(SETTINGS), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # letters that the font does not have are drawn as boxes
        canvas = Canvas((PRINTED / DPI, figure["layout"]["height"] / DPI), layout="constrained")
        _draw(canvas.add_subplot(), figure)
        for ending, date in FORMATS.items():
            file = io.BytesIO()
            canvas.savefig(file, format=ending, metadata={date: None})
            result[ending] = file.getvalue()
    return result


class FigureNames:
    """Names for the files of figures, made of letters and digits of the figure's own names, each only once.

    >>> names = FigureNames()
    >>> names.new("roc", "sst2", "BadNets (cf, mn)"), names.new("roc", "sst2", "badnets cf mn")
    ('roc-sst2-badnets-cf-mn', 'roc-sst2-badnets-cf-mn-2')
    """

    def __init__(self) -> None:
        self._used: set[str] = set()

    def new(self, *names: str) -> str:
        """A name for a figure."""
        words = (re.sub(r"[^a-z0-9]+", "-", name.lower())[:40].strip("-") for name in names)
        first = name = "-".join(filter(None, words))
        number = 1
        while name in self._used:
            number += 1
            name = f"{first}-{number}"
        self._used.add(name)
        return name


def _draw(axes: Axes, figure: Figure) -> None:
    layout = figure["layout"]
    names, handles = [], []
    for trace in figure["data"]:
        drawn = (_bars if trace["type"] == "bar" else _scatter)(axes, trace)
        if trace.get("showlegend", True):
            names.append(_plain(trace["name"]))
            handles.append(drawn)
    for shape in layout.get("shapes", ()):
        axes.axvline(shape["x0"], color="0.4", linewidth=1, linestyle=":")
    for side in ("x", "y"):
        _axis(axes, side, layout[f"{side}axis"])
    for annotation in layout.get("annotations", ()):
        _annotate(axes, annotation)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
    if names:
        blank = [""] * len(names)  # the names come later, since matplotlib 3.9 leaves out those that begin with _
        look = {"loc": "lower left", "bbox_to_anchor": (0, 1), "frameon": False, "ncols": _columns(names)}
        for text, name in zip(axes.legend(handles, blank, **look).get_texts(), names, strict=True):
            text.set_parse_math(False)
            text.set_text(name)


def _scatter(axes: Axes, trace: Figure) -> Artist:
    """Draws a trace with its error bars, and returns what stands for it in the legend."""
    x, y = ([float("nan") if value is None else value for value in trace[side]] for side in "xy")
    line, marker = trace.get("line", {}), trace.get("marker", {})
    colour = marker.get("color", line.get("color"))
    if trace.get("fill"):
        return axes.fill(x, y, facecolor=trace["fillcolor"], linewidth=0)[0]
    drawn = {"color": colour, "linewidth": line.get("width", 2) * POINT, "markeredgewidth": 0}
    drawn["linestyle"] = LINES[line.get("dash", "solid")] if "lines" in trace["mode"] else "none"
    if "markers" in trace["mode"]:
        drawn |= {"marker": MARKERS[marker["symbol"]], "markersize": marker["size"] * POINT}
    (line_drawn,) = axes.plot(x, y, **drawn)
    for side in "xy":
        if bars := trace.get(f"error_{side}"):
            ends: dict[str, Any] = {f"{side}err": [bars["arrayminus"], bars["array"]], "fmt": "none"}
            axes.errorbar(x, y, **ends, ecolor=bars["color"], elinewidth=bars["thickness"] * POINT)
    return line_drawn


def _bars(axes: Axes, trace: Figure) -> BarContainer:
    marker = trace["marker"]
    hatch = marker["pattern"]["shape"] * 4
    look = {"color": marker["color"], "alpha": trace["opacity"], "hatch": hatch, "edgecolor": "white", "linewidth": 0}
    return axes.bar(trace["x"], trace["y"], trace["width"], **look)


def _axis(axes: Axes, side: str, axis: Figure) -> None:
    of_side = axes.xaxis if side == "x" else axes.yaxis
    of_side.set_label_text(_plain(axis["title"]["text"]))
    if "range" in axis:
        (axes.set_xlim if side == "x" else axes.set_ylim)(*axis["range"])
    if "tickvals" in axis:
        of_side.set_ticks(axis["tickvals"], axis["ticktext"])
    if axis.get("tickformat") == ".0%":
        of_side.set_major_formatter(lambda value, position: f"{value:.0%}")


def _annotate(axes: Axes, annotation: Figure) -> None:
    if annotation["showarrow"]:
        offset = annotation["ax"], -annotation["ay"]
        arrow = {
            "arrowstyle": "-",
            "relpos": RELATIVE[annotation["xanchor"]],
            "color": annotation["arrowcolor"],
            "linewidth": 0.5,
            "shrinkA": 0,
            "shrinkB": 4,
        }
    else:
        offset, arrow = (annotation["xshift"], annotation["yshift"]), None
    text = axes.annotate(
        _plain(annotation["text"]),
        (annotation["x"], annotation["y"]),
        (offset[0] * POINT, offset[1] * POINT),
        textcoords="offset points",
        arrowprops=arrow,
        fontsize=annotation["font"]["size"] * POINT,
        ha=annotation["xanchor"],
        va="center",
    )
    text.set_parse_math(False)


def _columns(names: list[str]) -> int:
    """The number of columns of a legend above the axes."""
    return max(1, min(len(names), int(PRINTED // (max(map(len, names)) * 6 + 60))))


def _plain(text: str) -> str:
    """A text without plotly's line breaks and escapes."""
    return html.unescape(text.replace("<br>", "\n"))
