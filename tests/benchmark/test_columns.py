"""What the table shows: the best of the defenses, and how sure a number is."""

from __future__ import annotations

import pytest

from lightning_backdoor.benchmark.grid import CLEAN_TRAINING
from lightning_backdoor.benchmark.report.columns import SHOWN, Entry, Line, lines
from lightning_backdoor.benchmark.table import Row
from tests.benchmark.example import Example, example, fail


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Example:
    return example(tmp_path_factory.mktemp("cells"))


def line_of(rows: list[Row], attack: str, defense: str) -> Line:
    return next(
        line
        for line in lines(rows)
        if (line.summary.names["attack"], line.summary.names["defense"]) == (attack, defense)
    )


def entry(line: Line, metric: str) -> Entry:
    found = line.entries[[column.metric for column in SHOWN].index(metric)]
    assert found is not None
    return found


def test_the_best_defense_of_each_attack_is_marked_and_never_the_undefended_or_the_control(made: Example) -> None:
    table = lines(made.rows)
    marked = 0
    for i, column in enumerate(SHOWN):
        for attack in ("none", "badnets", "style"):
            of_attack = [line for line in table if line.summary.names["attack"] == attack]
            shown = {line.summary.names["defense"]: line.entries[i] for line in of_attack}
            found = {name: e for name, e in shown.items() if e and name not in ("none", CLEAN_TRAINING)}
            texts = sorted((e.text for e in found.values()), reverse=column.best == "high")
            best = {name for name, e in found.items() if column.best and texts[0] != texts[-1] and e.text == texts[0]}
            assert {name for name, e in shown.items() if e and e.best} == best
            marked += len(best)
    assert marked > 10


def test_several_seeds_have_a_spread_and_one_an_interval(made: Example) -> None:
    both = entry(line_of(made.rows, "badnets", "onion"), "asr_defended")
    values = [row["asr_defended"] for row in made.rows if (row["attack"], row["defense"]) == ("badnets", "onion")]
    assert both.text == f"{sum(values) / 2:.3f}"
    assert both.around == f"±{abs(values[0] - values[1]) / 2**0.5:.3f}"
    row = made.row(attack="badnets", defense="onion", seed=1)
    one = line_of([row], "badnets", "onion")
    assert entry(one, "asr_defended").around == f"{row['asr_defended_low']:.2f}–{row['asr_defended_high']:.2f}"
    assert entry(one, "tpr").around == ""


def test_a_line_fails_with_all_its_seeds_and_goes_on_with_those_that_are_left(made: Example) -> None:
    rows = [dict(row) for row in made.rows]
    for row in rows:
        if row["defense"] == "onion" or (row["defense"], row["seed"]) == ("strip", 0):
            fail(row, "OSError: gone")
    assert line_of(rows, "badnets", "onion").failed
    strip = line_of(rows, "badnets", "strip")
    assert (strip.failed, strip.summary.seeds) == (False, [1])


def test_an_attack_that_does_not_count_is_marked(made: Example) -> None:
    found = {attack: line_of(made.rows, attack, "onion").invalid for attack in ("none", "badnets", "style")}
    assert found == {"none": "", "badnets": "", "style": "not valid"}
    rows = [{**row, "valid": "yes"} if row["seed"] == 0 else row for row in made.rows]
    assert line_of(rows, "style", "onion").invalid == "1 of 2 not valid"
