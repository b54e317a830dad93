"""The rows of ``results.csv``: what a cell's row holds, which attacks are valid, and defenses compared."""

from __future__ import annotations

import csv
from typing import Any

import pytest

from lightning_backdoor.benchmark.comparisons import COMPARED_COLUMNS, answers_of, compare_defenses
from lightning_backdoor.benchmark.grid import CLEAN_TRAINING
from lightning_backdoor.benchmark.statistics import share_interval
from lightning_backdoor.benchmark.table import COLUMNS, NUMBERS, ResultRow, csv_text, mark_valid, measured
from lightning_backdoor.outputs.outcomes import Outcome

#: the columns of version 0.1.0, which scripts may read by position among themselves.
FIRST_COLUMNS = [
    *("dataset", "model", "attack", "defense", "seed", "n_clean", "n_poisoned"),
    *("cacc", "asr", "pacc", "asr_floor", "cacc_defended", "asr_defended", "pacc_defended"),
    *("auroc", "auroc_target", "tpr", "fpr", "localisation", "overhead"),
    *("cacc_defended_low", "cacc_defended_high", "asr_defended_low", "asr_defended_high", "auroc_low", "auroc_high"),
    *("valid", "cell", "victim", "seconds", "error"),
]


def row(attack: str, defense: str, seed: int = 0, **values: Any) -> ResultRow:
    names = {"dataset": "d", "model": "m", "attack": attack, "defense": defense, "seed": seed}
    return {
        **dict.fromkeys(NUMBERS),
        "error": "",
        "cell": f"{attack}{defense}{seed}",
        "victim": f"{attack}{seed}",
        **names,
        **values,
    }


def test_an_attack_is_valid_by_its_undefended_victim() -> None:
    rows = [
        row("benign", "none", cacc=0.90),
        row("strong", "none", cacc=0.88, asr=0.95),
        row("strong", "hardened", cacc=0.70, asr=0.20),  # a defense's effect does not make the attack invalid
        row("weak", "none", cacc=0.90, asr=0.85),
        row("costly", "none", cacc=0.86, asr=1.0),
        row("failed", "none", error="broken"),
    ]
    mark_valid(rows, "benign")
    assert [r["valid"] for r in rows] == ["", "yes", "yes", "no", "no", ""]
    assert rows[4]["invalid_because"] == "CACC 0.860 is more than 0.03 below that of clean training, 0.900"


def test_an_attack_counts_by_its_asr_above_the_floor_with_or_without_a_benign_victim() -> None:
    rows = [
        row("collapsed", "none", cacc=0.5, asr=1.0, asr_floor=1.0),
        row("collapsed", "onion", cacc=0.5, asr=1.0, asr_floor=1.0, training=""),
        row("strong", "none", cacc=0.9, asr=0.95, asr_floor=0.1),
        row("unknown", "none", cacc=0.9, asr=0.95),
    ]
    mark_valid(rows, None)
    assert [r["excess_asr"] for r in rows] == [0.0, 0.0, pytest.approx(0.85), None]
    assert [r["valid"] for r in rows] == ["no", "no", "yes", "yes"]
    assert {r["invalid_because"] for r in rows[:2]} == {"excess ASR 0.000 is below 0.5"}


def test_the_larger_of_the_two_floors_counts() -> None:
    rows = [
        row("style", CLEAN_TRAINING, cacc=0.9, asr=0.6, asr_floor=0.1),
        row("style", "none", cacc=0.9, asr=1.0, asr_floor=0.2),
        row("style", "none", seed=1, cacc=0.9, asr=1.0, asr_floor=0.2),
    ]
    mark_valid(rows, None)
    assert [r["excess_asr"] for r in rows] == [pytest.approx(0.5), pytest.approx(0.4), pytest.approx(0.8)]
    assert [r["valid"] for r in rows] == ["no", "no", "yes"]


def test_an_attack_whose_victim_was_never_trained_is_not_judged() -> None:
    # the control has run, and a victim under a training-time defense, whose ASR says nothing of the attack
    rows = [
        row("benign", "none", cacc=0.9),
        row("a", CLEAN_TRAINING, cacc=0.9, asr=0.1, asr_floor=0.1, training=""),
        row("a", "hardened", cacc=0.9, asr=0.2, asr_floor=0.1, training="hardened"),
        row("a", "none", error="victim: broken"),
    ]
    mark_valid(rows, "benign")
    assert {(r["valid"], r["invalid_because"]) for r in rows} == {("", "")}
    # a defense at test time leaves the victim as it is
    rows.append(row("a", "onion", cacc=0.9, asr=0.95, asr_floor=0.1, training=""))
    mark_valid(rows, "benign")
    assert {r["valid"] for r in rows[1:]} == {"yes"}


def test_rejected_texts_are_neither_attack_successes_nor_correct() -> None:
    # whatever the labels are called
    outcomes = [
        Outcome(0, False, "bad", "rejected", "bad", "bad", False, False, 0.1, False),
        Outcome(1, False, "rejected", "rejected", "rejected", None, True, True, 0.9, True),
        Outcome(0, True, "bad", "rejected", "rejected", None, True, True, 0.8, True),
        Outcome(2, True, "bad", "rejected", "rejected", "rejected", False, False, 0.2, False),
    ]
    numbers = measured({"test/cacc": 1.0, "test/mine/cacc_defended": 0.5, "test/asr": 1.0, "val/cacc": 0.0}, outcomes)
    assert (numbers["n_clean"], numbers["n_poisoned"], numbers["cacc"], numbers["cacc_defended"]) == (2, 2, 1.0, 0.5)
    assert (numbers["asr_defended"], numbers["auroc"]) == (1.0, None)
    one_of_two = (pytest.approx(0.0945312), pytest.approx(0.9054688))
    assert (numbers["cacc_defended_low"], numbers["cacc_defended_high"]) == one_of_two
    assert (numbers["asr_defended_low"], numbers["asr_defended_high"]) == one_of_two
    assert numbers.keys() == {*NUMBERS}


def test_the_interval_of_localisation_is_that_of_the_texts_it_counts() -> None:
    outcomes = [Outcome(i, True, "bad", "good", "good") for i in range(100)]
    logged = {"test/localisation": 0.5, "test/localisation_texts": 10.0}
    numbers = measured(logged, outcomes)
    assert (numbers["localisation_low"], numbers["localisation_high"]) == share_interval(5, 10)
    assert numbers.keys() == {*NUMBERS}
    # earlier versions did not log their number
    numbers = measured({"test/localisation": 0.5}, outcomes)
    assert [numbers[f"localisation{end}"] for end in ("", "_low", "_high")] == [0.5, None, None]


def test_false_triggers_inspection_and_cleaning_have_columns() -> None:
    logged = {"test/cacc": 0.5, "test/ftr": 0.25, "test/inspection_score": 3.5, "test/inspection_p_value": 0.0003}
    cleaning = {"rows": 100, "removed": 7, "changed": 0, "precision": float("nan"), "recall": 0.5}
    numbers = measured(logged, [], cleaning)
    assert (numbers["ftr"], numbers["inspection_score"], numbers["inspection_p_value"]) == (0.25, 3.5, 0.0003)
    cleaned = {name: numbers[f"cleaning_{name}"] for name in ("removed", "changed", "precision", "recall")}
    assert cleaned == {"removed": 7, "changed": 0, "precision": None, "recall": 0.5}
    assert "cleaning_rows" not in numbers
    without = measured({"test/cacc": 0.5}, [])
    assert {without[name] for name in NUMBERS if name.startswith(("ftr", "inspection", "cleaning"))} == {None}


def test_the_first_columns_keep_their_order() -> None:
    assert [column for column in COLUMNS if column in FIRST_COLUMNS] == FIRST_COLUMNS
    assert len({*COLUMNS}) == len(COLUMNS)


def test_csv_keeps_every_digit_and_leaves_undefined_numbers_empty() -> None:
    rows = [row("a,b", 'say "x"\n', cacc=0.1 + 0.2, n_clean=3), {"attack": "bare"}]
    text = csv_text(rows, ("attack", "defense", "n_clean", "cacc", "asr"))
    assert text == 'attack,defense,n_clean,cacc,asr\n"a,b","say ""x""\n",3,0.30000000000000004,\nbare,,,,\n'
    assert [len(fields) for fields in csv.reader(text.splitlines(keepends=True))] == [5] * 3


def test_defenses_are_compared_on_the_texts_that_both_have() -> None:
    by_defense = {
        name: {0: answers_of(Outcome(i, True, "bad", "good", prediction) for i, prediction in enumerate(predictions))}
        for name, predictions in (("none", ["good"] * 3), ("other", ["bad", "good"]))
    }
    compared, by_pacc = compare_defenses(row("a", "none"), by_defense, 0)
    assert tuple(compared) == COMPARED_COLUMNS
    assert (by_pacc["metric"], by_pacc["seed"], by_pacc["difference"]) == ("pacc", 0, -0.5)
    assert (compared["first"], compared["second"], compared["metric"], compared["texts"]) == ("none", "other", "asr", 2)
    assert compared["difference"] == 0.5


def test_every_poisoned_copy_of_a_row_counts() -> None:
    by_defense = {
        name: {0: answers_of(Outcome(5, True, "bad", "good", prediction) for prediction in predictions)}
        for name, predictions in (("none", ["good", "good"]), ("other", ["good", "bad"]))
    }
    compared, _ = compare_defenses(row("a", "none"), by_defense, 0)
    assert (compared["metric"], compared["difference"]) == ("asr", 0.5)


@pytest.mark.parametrize(("poisoned", "metric"), [(True, "asr"), (False, "cacc")])
def test_poisoned_texts_count_for_asr_and_clean_ones_for_cacc(poisoned: bool, metric: str) -> None:
    outcomes = [Outcome(5, poisoned, "bad", "good", "good"), Outcome(6, poisoned, "good", "bad", "good")]
    hits = answers_of(outcomes).hits[metric]
    assert {text.index: hit for text, hit in hits.items()} == {5: poisoned, 6: not poisoned}
