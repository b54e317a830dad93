"""The table over seeds: spreads and intervals, the best defense, failed seeds, and which metrics are shown."""

from __future__ import annotations

import pytest

from lightning_backdoor.benchmark.metrics import METRIC_NAMES, METRICS, PARTS
from lightning_backdoor.benchmark.summaries import Summary, over_seeds, shown_metrics
from lightning_backdoor.benchmark.table import ResultRow
from tests.benchmark.example import Example, example, fail
from tests.benchmark.test_table import row


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Example:
    return example(tmp_path_factory.mktemp("cells"))


def line_of(rows: list[ResultRow], attack: str, defense: str) -> Summary:
    return next(line for line in over_seeds(rows) if (line.names["attack"], line.names["defense"]) == (attack, defense))


def test_seeds_are_put_together_and_failed_ones_told_apart() -> None:
    rows = [
        row("a", "none", 0, cacc=0.8, valid="yes"),
        row("a", "none", 1, cacc=0.9, valid="no"),
        row("a", "none", 2, error="broken", valid=""),
        row("a", "other", 0, cacc=0.7, cacc_defended=0.6, cacc_defended_low=0.5, cacc_defended_high=0.65, valid=""),
    ]
    two_seeds, one_seed = over_seeds(rows)
    assert (two_seeds.seeds, two_seeds.errors, two_seeds.valid) == ([0, 1], ["broken"], (1, 2))
    assert [*two_seeds.numbers] == ["cacc"]
    number = two_seeds.numbers["cacc"]
    assert (number.text, number.around, number.interval) == ("0.850", "±0.071", None)
    assert number.mean == pytest.approx(0.85)
    assert number.spread == pytest.approx(0.05 * 2**0.5)
    assert one_seed.numbers["cacc"][1:4] == (None, None, "0.700")
    assert one_seed.numbers["cacc_defended"][1:4] == (None, (0.5, 0.65), "0.600")
    assert "asr" not in one_seed.numbers


def test_several_seeds_have_a_spread_and_one_an_interval(made: Example) -> None:
    over_both = line_of(made.rows, "badnets", "onion").numbers["asr_defended"]
    values = [row["asr_defended"] for row in made.rows if (row["attack"], row["defense"]) == ("badnets", "onion")]
    assert over_both.text == f"{sum(values) / 2:.3f}"
    assert over_both.around == f"±{abs(values[0] - values[1]) / 2**0.5:.3f}"
    of_one = made.row(attack="badnets", defense="onion", seed=1)
    numbers = line_of([of_one], "badnets", "onion").numbers
    assert numbers["asr_defended"].around == f"{of_one['asr_defended_low']:.2f}–{of_one['asr_defended_high']:.2f}"
    assert numbers["tpr"].around == f"{of_one['tpr_low']:.2f}–{of_one['tpr_high']:.2f}"
    assert numbers["overhead"].around == ""


def test_a_line_fails_with_all_its_seeds_and_goes_on_with_those_that_are_left(made: Example) -> None:
    rows = [dict(row) for row in made.rows]
    for row_ in rows:
        if row_["defense"] == "onion" or (row_["defense"], row_["seed"]) == ("strip", 0):
            fail(row_, "OSError: gone")
    assert line_of(rows, "badnets", "onion").failed
    strip = line_of(rows, "badnets", "strip")
    assert (strip.failed, strip.seeds) == (False, [1])


def test_an_attack_that_is_not_valid_is_marked(made: Example) -> None:
    lines = {attack: line_of(made.rows, attack, "onion") for attack in ("none", "badnets", "style")}
    assert {attack: line.invalid for attack, line in lines.items()} == {"none": "", "badnets": "", "style": "not valid"}
    assert [line.counts for line in lines.values()] == [False, True, False]
    assert [why.split(" is ")[0].rpartition(" ")[0] for why in lines["style"].failed_conditions] == [
        f"seed {seed}: {made.row(attack='style', seed=seed)['invalid_because'].split(' is ')[0].rpartition(' ')[0]}"
        for seed in (0, 1)
    ]
    rows = [{**row, "valid": "yes"} if row["seed"] == 0 else row for row in made.rows]
    assert line_of(rows, "style", "onion").invalid == "1 of 2 not valid"


def test_metrics_without_a_value_are_not_shown_and_the_others_come_by_part() -> None:
    rows = [row("a", "none", cacc=0.9, ftr=0.25, valid=""), row("a", "x", overhead=2.0, cleaning_removed=7, valid="")]
    shown = shown_metrics(over_seeds(rows))
    assert [metric.title for metric in shown] == ["CACC", "FTR", "Cleaning removed", "Time"]
    assert line_of(rows, "a", "x").numbers["cleaning_removed"].text == "7"
    assert shown_metrics([]) == []


def test_every_metric_is_described_and_no_two_read_alike() -> None:
    assert len({*METRIC_NAMES}) == len(METRICS)
    assert len({metric.title for metric in METRICS}) == len(METRICS)
    for metric in METRICS:
        assert metric.part in ("", *PARTS)
        assert metric.meaning.endswith(".")
        assert metric.better in ("", "high", "low")
