"""The figures: what plotly takes, short, no name in them is read as markup, nothing covers anything."""

from __future__ import annotations

import json
import random
from itertools import combinations, pairwise

import numpy as np
import pytest

from lightning_backdoor.benchmark.report.detection_figures import (
    BINS,
    POINTS,
    Curve,
    histogram,
    mean_curve,
    roc_curve,
    roc_figure,
    thinned,
)
from lightning_backdoor.benchmark.report.figure_files import figure_files
from lightning_backdoor.benchmark.report.figures import MARK, NARROW, PRINTED, WIDE, Figure, styles, trade_off
from lightning_backdoor.benchmark.report.layout import label_positions, moved_apart
from lightning_backdoor.benchmark.summaries import over_seeds
from lightning_backdoor.defenses.onion import HIGHEST, LOWEST
from lightning_backdoor.outputs.outcomes import Outcome
from tests.benchmark.example import Example, example

OUTCOMES = [Outcome(i, i > 4, "a", "b", "b", "b", i > 3, True, float(i)) for i in range(9)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Example:
    return example(tmp_path_factory.mktemp("cells"))


def curve(outcomes: list[Outcome] = OUTCOMES) -> Curve:
    made = roc_curve(outcomes)
    assert made is not None
    return made


def marks(figure: Figure) -> list[Figure]:
    """The traces of a trade-off with the points as drawn."""
    return [trace for trace in figure["data"] if "customdata" in trace]


def test_a_long_curve_is_thinned_and_keeps_its_ends() -> None:
    points = [(i / 5000, i / 5000) for i in range(5001)]
    kept = thinned(points)
    assert len(kept) == POINTS
    assert (kept[0], kept[-1]) == (points[0], points[-1])
    assert kept == sorted(kept)


def test_no_name_is_read_as_markup_by_plotly(made: Example) -> None:
    name = "<a href=x>%{x}"
    rows = [{**row, "defense": name} if row["defense"] == "onion" else row for row in made.rows]
    for figure in (trade_off(over_seeds(rows)), roc_figure({name: [curve()]}, styles([name]))):
        labels = json.dumps([[trace.get(key) for key in ("name", "text")] for trace in figure["data"]])
        labels += json.dumps(figure["layout"].get("annotations", ()))
        assert "&lt;a href=x&gt;%&#123;x}" in labels
        assert "<a" not in json.dumps(figure)


def test_figures_are_json_that_plotly_knows_every_property_of(made: Example) -> None:
    import plotly.graph_objects as go

    one_seed = over_seeds(row for row in made.rows if row["seed"] == 0)
    style = styles(["onion", "strip"])
    drawn = [trade_off(made.results.summaries), trade_off(one_seed, NARROW)]
    drawn += [roc_figure({"onion": [curve(), curve()], "strip": [curve()]}, style), roc_figure({}, {})]
    drawn += [histogram(OUTCOMES), histogram([]), trade_off([])]
    for figure in drawn:
        assert json.loads(json.dumps(figure, allow_nan=False)) == figure
        go.Figure(figure)  # raises an error on a property or a value that plotly does not know


def test_error_bars_are_the_interval_of_one_seed_and_the_spread_of_several(made: Example) -> None:
    one = made.row(attack="badnets", defense="onion", seed=0)
    exact = next(trace for trace in trade_off(over_seeds([one]))["data"] if "error_x" in trace)
    bars = exact["error_x"]
    assert (exact["x"], exact["y"]) == ([one["asr_defended"]], [one["cacc_defended"]])
    assert bars["array"] == [pytest.approx(one["asr_defended_high"] - one["asr_defended"])]
    assert bars["arrayminus"] == [pytest.approx(one["asr_defended"] - one["asr_defended_low"])]
    rows = [row for row in made.rows if (row["attack"], row["defense"]) == ("badnets", "onion")]
    exact = next(trace for trace in trade_off(over_seeds(rows))["data"] if "error_x" in trace)
    spread = abs(rows[0]["asr_defended"] - rows[1]["asr_defended"]) / 2**0.5
    assert exact["error_x"]["array"] == exact["error_x"]["arrayminus"] == [pytest.approx(spread)]


def test_defenses_next_to_each_other_differ_in_more_than_colour() -> None:
    looks = [*styles(f"defense {i}" for i in range(30)).values()]
    assert len(set(looks)) == 30
    for first, second in pairwise(looks):
        assert all(a != b for a, b in zip(first, second, strict=True))


# the trade-off


@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_points_are_labelled_and_points_at_the_same_position_are_moved_apart(made: Example, width: int) -> None:
    rows = [{**row, "asr_defended": 0.9, "cacc_defended": 0.8} for row in made.rows if row["attack"] == "badnets"]
    figure = trade_off(over_seeds(rows), width)
    points = [(x, y) for trace in marks(figure) for x, y in zip(trace["x"], trace["y"], strict=True)]
    assert len(points) == 6
    (left, right), (bottom, top) = figure["layout"]["xaxis"]["range"], figure["layout"]["yaxis"]["range"]
    across, up = (width - 64) / (right - left), 300 / (top - bottom)
    for (x, y), (other_x, other_y) in combinations(points, 2):
        assert np.hypot((x - other_x) * across, (y - other_y) * up) > 0.9 * MARK
    assert {tuple(values) for trace in marks(figure) for values in trace["customdata"]} == {
        (0.9, 0.8)
    }  # as hovering says
    labels = [annotation["text"] for annotation in figure["layout"]["annotations"]]
    assert {*labels} <= {"none", "gradient-attention", "onion", "strip", "musclelora", "clean training"}
    assert len(labels) >= (6 if width == WIDE else 4)


@pytest.mark.parametrize("width", [WIDE, NARROW, PRINTED])
def test_no_mark_is_cut_at_the_edge(made: Example, width: int) -> None:
    rows = [{**row, "asr_defended": 1.0, "cacc_defended": 0.8} for row in made.rows]
    figure = trade_off(over_seeds(rows), width)
    bounds = [figure["layout"][axis]["range"] for axis in ("xaxis", "yaxis")]
    for (low, high), size, name in zip(bounds, (width - 64, 300), "xy", strict=True):
        edge = MARK / 2 * (high - low) / size
        assert all(low + edge <= value <= high - edge for trace in marks(figure) for value in trace[name])


def test_labels_name_what_differs(made: Example) -> None:
    labels = {a["text"] for a in trade_off(made.results.summaries)["layout"]["annotations"]}
    assert "onion, badnets" in labels
    assert len(labels) >= 10  # of 12
    one_attack = over_seeds(row for row in made.rows if row["attack"] == "badnets")
    assert "onion" in {a["text"] for a in trade_off(one_attack)["layout"]["annotations"]}


def test_points_that_are_far_apart_stay() -> None:
    points = np.array([[10.0, 10.0], [50.0, 50.0]])
    assert moved_apart(points, 11, (100, 100)).tolist() == points.tolist()
    assert moved_apart(points[:0], 11, (100, 100)).shape == (0, 2)


def test_labels_cover_neither_points_nor_each_other() -> None:
    drawn = np.random.default_rng(0).uniform(0, 300, (25, 2))
    texts = ["a label"] * 25
    positions = label_positions(drawn, texts, 5, (300, 300))
    boxes = [
        (x + p.x + (p.side - 1) * 21, y + p.y - 7, x + p.x + (p.side + 1) * 21, y + p.y + 7)
        for (x, y), p in zip(drawn.tolist(), positions, strict=True)
        if p is not None
    ]
    assert len(boxes) > 15
    for a, b in combinations(boxes, 2):
        assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
    for left, top, right, bottom in boxes:
        assert not any(left < x < right and top < y < bottom for x, y in drawn.tolist())
        assert min(left, top) >= 0
        assert max(right, bottom) <= 300


# ROC curves


def test_the_roc_curve_is_the_mean_over_seeds_with_the_auroc_in_the_legend() -> None:
    perfect = Curve([(0.0, 0.0), (0.0, 1.0), (1.0, 1.0)], (0.1, 1.0), 1.0)
    chance = Curve([(0.0, 0.0), (1.0, 1.0)], (0.3, 0.5), 0.5)
    x, y, spread = mean_curve([perfect, chance])
    assert (x[0], y[0]) == (0, 0)
    assert np.interp(0.5, x, y) == pytest.approx(0.75)
    assert spread[-1] == 0
    figure = roc_figure({"onion": [perfect, chance], "strip": [chance]}, styles(["onion", "strip"]))
    legend = [trace["name"] for trace in figure["data"] if trace.get("showlegend")]
    assert legend == ["onion, AUROC 0.750 ±0.354", "strip, AUROC 0.500"]
    threshold = next(trace for trace in figure["data"] if trace.get("mode") == "markers")
    assert (threshold["x"], threshold["y"]) == ([0.2], [0.75])


def test_the_roc_of_one_seed_has_the_interval_of_the_auroc(made: Example) -> None:
    one = made._replace(rows=[row for row in made.rows if row["attack"] == "badnets" and row["seed"] == 0])
    roc = one.results.attacks[0].roc
    assert roc is not None
    row = one.row(defense="onion")
    names = [trace["name"] for trace in roc["data"] if trace.get("showlegend")]
    assert f"onion, AUROC {row['auroc']:.3f} ({row['auroc_low']:.2f}–{row['auroc_high']:.2f})" in names


# histograms


def with_scores(scores: list[float]) -> list[Outcome]:
    return [Outcome(i, i % 2 == 0, "a", "b", "b", "b", score > 100, False, score) for i, score in enumerate(scores)]


def test_scores_of_long_tails_have_a_logarithmic_scale_and_the_axis_says_so() -> None:
    drawn = random.Random(0)
    figure = histogram(with_scores([drawn.lognormvariate(3, 2) * drawn.choice((1, 1, 1, -0.1)) for _ in range(400)]))
    axis = figure["layout"]["xaxis"]
    assert axis["title"]["text"] == "score (logarithmic, the end bars hold the outer 1 %)"
    assert {"0", "10", "100", "1000"} & {*axis["ticktext"]} >= {"0", "100"}
    for trace in figure["data"]:
        assert len(trace["x"]) == BINS
        assert max(trace["y"]) < 0.4  # not all in one bar
        assert sum(trace["y"]) == pytest.approx(1, abs=0.01)
    assert len(figure["layout"]["shapes"]) == 1


def test_scores_without_tails_have_a_linear_scale() -> None:
    drawn = random.Random(0)
    axis = histogram(with_scores([drawn.gauss(0, 1) for _ in range(400)]))["layout"]["xaxis"]
    assert axis["title"]["text"] == "score (the end bars hold the outer 1 %)"
    assert "ticktext" not in axis
    assert histogram(with_scores([1.0, 2.0] * 10))["layout"]["xaxis"]["title"]["text"] == "score"
    assert histogram(with_scores([0.0] * 10))["layout"]["xaxis"]["title"]["text"] == "score"


def test_scores_that_stand_for_infinite_ones_are_left_out_and_counted() -> None:
    drawn = random.Random(0)
    scores = [drawn.gauss(0, 60) for _ in range(200)]
    shown = histogram(with_scores(scores))
    figure = histogram(with_scores([*scores, LOWEST, LOWEST, HIGHEST, float("inf")]))
    assert figure["data"] == shown["data"]
    assert figure["layout"]["shapes"] == shown["layout"]["shapes"]
    said = "score (the end bars hold the outer 1 %)"
    assert figure["layout"]["xaxis"]["title"]["text"] == f"{said}<br>4 infinite scores left out"
    svg = figure_files(figure)["svg"].decode()
    assert said in svg
    assert ">4 infinite scores left out<" in svg
    only = histogram(with_scores([LOWEST]))
    assert (only["data"], only["layout"]["xaxis"]["title"]["text"]) == ([], "score<br>1 infinite score left out")
