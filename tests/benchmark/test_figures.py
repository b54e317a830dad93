"""The plots: what plotly takes, short, and no name in them is read as markup."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest

from lightning_backdoor.benchmark.report.figures import (
    POINTS,
    histogram,
    roc_figure,
    roc_traces,
    styles,
    thinned,
    trade_off,
)
from lightning_backdoor.benchmark.summaries import over_seeds
from lightning_backdoor.outputs.outcomes import Outcome
from tests.benchmark.example import Example, example

OUTCOMES = [Outcome(i, i > 4, "a", "b", "b", "b", i > 3, True, float(i)) for i in range(9)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Example:
    return example(tmp_path_factory.mktemp("cells"))


def test_a_long_curve_is_thinned_and_keeps_its_ends() -> None:
    points = [(i / 5000, i / 5000) for i in range(5001)]
    kept = thinned(points)
    assert len(kept) == POINTS
    assert (kept[0], kept[-1]) == (points[0], points[-1])
    assert kept == sorted(kept)


def test_no_name_is_read_as_markup_by_plotly(made: Example) -> None:
    name = "<a href=x>%{x}"
    rows = [{**row, "defense": name} if row["defense"] == "onion" else row for row in made.rows]
    curves = roc_figure(roc_traces(name, "0", OUTCOMES, styles([name])[name]))
    for figure in (trade_off(over_seeds(rows)), curves):
        labels = json.dumps([[trace.get(key) for key in ("name", "text")] for trace in figure["data"]])
        assert "&lt;a href=x&gt;%&#123;x}" in labels
        assert "<a" not in json.dumps(figure)


def test_figures_are_json_that_plotly_knows_every_property_of(made: Example) -> None:
    import plotly.graph_objects as go

    one_seed = over_seeds(row for row in made.rows if row["seed"] == 0)
    style = styles(["onion"])["onion"]
    curves = [trace for seed in ("0", "1") for trace in roc_traces("onion", seed, OUTCOMES, style)]
    drawn = [trade_off(made.results.summaries), trade_off(one_seed), roc_figure(curves)]
    drawn += [histogram(OUTCOMES), histogram([]), trade_off([]), roc_figure([])]
    for figure in drawn:
        assert json.loads(json.dumps(figure, allow_nan=False)) == figure
        go.Figure(figure)  # raises an error on a property or a value that plotly does not know
    assert [trace["showlegend"] for trace in drawn[2]["data"]] == [False, True, False, False, False]


def test_error_bars_are_the_interval_of_one_seed_and_the_spread_of_several(made: Example) -> None:
    one = made.row(attack="badnets", defense="onion", seed=0)
    (trace,) = trade_off(over_seeds([one]))["data"]
    bars = trace["error_x"]
    assert (trace["x"], trace["y"]) == ([one["asr_defended"]], [one["cacc_defended"]])
    assert bars["array"] == [pytest.approx(one["asr_defended_high"] - one["asr_defended"])]
    assert bars["arrayminus"] == [pytest.approx(one["asr_defended"] - one["asr_defended_low"])]
    rows = [row for row in made.rows if (row["attack"], row["defense"]) == ("badnets", "onion")]
    (trace,) = trade_off(over_seeds(rows))["data"]
    spread = abs(rows[0]["asr_defended"] - rows[1]["asr_defended"]) / 2**0.5
    assert trace["error_x"]["array"] == trace["error_x"]["arrayminus"] == [pytest.approx(spread)]


def test_defenses_next_to_each_other_differ_in_more_than_colour() -> None:
    looks = [*styles(f"defense {i}" for i in range(30)).values()]
    assert len(set(looks)) == 30
    for first, second in pairwise(looks):
        assert all(a != b for a, b in zip(first, second, strict=True))
