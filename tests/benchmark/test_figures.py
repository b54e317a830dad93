"""The plots' data: short, and no name is read as markup."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest

from lightning_backdoor.benchmark.report.figures import POINTS, roc_curves, scatter, styles, thinned
from lightning_backdoor.outputs.outcomes import Outcome
from tests.benchmark.example import Example, example


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
    rows = [{**row, "defense": "<a href=x>%{x}"} if row["defense"] == "onion" else row for row in made.rows]
    outcomes = [Outcome(i, i > 4, "a", "b", "b", "b", i > 3, True, float(i)) for i in range(9)]
    curves = roc_curves([("<a href=x>%{x}", 0, outcomes)], styles(["<a href=x>%{x}"]))
    for figure in (scatter(rows), curves):
        content = json.loads(figure.to_json())
        labels = json.dumps([[trace.get(key) for key in ("name", "text")] for trace in content["data"]])
        assert "&lt;a href=x&gt;%&#123;x}" in labels
        assert "<a" not in json.dumps(content)


def test_defenses_next_to_each_other_differ_in_more_than_colour() -> None:
    looks = [*styles(f"defense {i}" for i in range(30)).values()]
    assert len(set(looks)) == 30
    for first, second in pairwise(looks):
        assert all(a != b for a, b in zip(first, second, strict=True))
