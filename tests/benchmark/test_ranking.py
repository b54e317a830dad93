"""Which defenses are marked as the best: by paired tests, and only where a defense does something."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from lightning_backdoor.benchmark.comparisons import Answers, answers_of, working_defenses
from lightning_backdoor.benchmark.metrics import METRIC_NAMES
from lightning_backdoor.benchmark.results import Results, collect_results
from lightning_backdoor.benchmark.statistics import is_more_frequent
from lightning_backdoor.benchmark.summaries import Number
from lightning_backdoor.benchmark.table import ResultRow, measured
from lightning_backdoor.outputs.outcomes import Outcome, write_outcomes
from tests.benchmark.example import example, fail
from tests.benchmark.test_table import row

#: number of clean and of poisoned texts.
TEXTS = 100


def cell(
    cells: Path,
    defense: str,
    seed: int = 0,
    stopped: Sequence[int] = (),
    lost: Sequence[int] = (),
    floor: float = 0.1,
    scores: Mapping[tuple[bool, int], float] | None = None,
    asr: float = 1.0,
    **more: object,
) -> ResultRow:
    """Writes the outcomes of a cell in which every poisoned text reaches its target, and returns its row.

    Args:
        cells: the folder of the cells' folders.
        defense: name of the defense.
        seed: seed of the cell.
        stopped: indices of the poisoned texts that the defense flags and corrects.
        lost: indices of the clean texts that it flags and rejects.
        floor: the victim's own floor.
        scores: the score of a text, by poisoned or not and index; by default 1 if flagged and 0 if not.
        asr: ASR of the victim.
        **more: other columns of the row.
    """
    outcomes: list[Outcome] = []
    for poisoned, flagged in ((False, {*lost}), (True, {*stopped})):
        for i in range(TEXTS):
            own, hit = ("good" if poisoned else "bad"), i in flagged
            answer = None if hit and not poisoned else "bad" if hit else own
            score = float(hit) if scores is None else scores[poisoned, i]
            outcomes.append(Outcome(i, poisoned, "bad", "good", own, answer, hit, hit, score, answer is None))
    if defense == "none":
        outcomes = [Outcome(*outcome[:5]) for outcome in outcomes]
    rates = {"cacc": 1.0, "asr": asr, "asr_floor": floor}
    if defense != "none":
        rates |= {"asr_defended": 1 - len({*stopped}) / TEXTS, "cacc_defended": 1 - len({*lost}) / TEXTS}
        rates |= {"pacc_defended": len({*stopped}) / TEXTS, "tpr": len({*stopped}) / TEXTS, "fpr": len({*lost}) / TEXTS}
    name = row("a", defense, seed)["cell"]
    (cells / name).mkdir()
    write_outcomes(cells / name / "outcomes.csv", outcomes)
    numbers = measured({f"test/{name}": value for name, value in rates.items()}, outcomes)
    return row("a", defense, seed, **{**numbers, "training": "", **more})


def marks(results: Results) -> dict[str, dict[str, str]]:
    """Per metric, the marked defenses and how."""

    def mark(number: Number) -> str:
        return "best" if number.best else "tied" if number.tied else ""

    shown = {
        name: {
            line.names["defense"]: mark(line.numbers[name])
            for line in results.summaries
            if name in line.numbers and mark(line.numbers[name])
        }
        for name in METRIC_NAMES
    }
    return {name: of_metric for name, of_metric in shown.items() if of_metric}


def test_a_defense_that_is_better_by_the_paired_test_is_the_best(tmp_path: Path) -> None:
    rows = [
        cell(tmp_path, "none"),
        cell(tmp_path, "strong", stopped=range(90), lost=range(5)),
        cell(tmp_path, "weak", stopped=range(30), lost=range(5)),
    ]
    assert marks(collect_results(rows, None, tmp_path)) == {
        "asr_defended": {"strong": "best"},
        "pacc_defended": {"strong": "best"},
        "tpr": {"strong": "best"},
    }
    fail(rows[0], "OSError: gone")  # the attack is known from the victims that defenses at test time leave as they are
    assert marks(collect_results(rows, None, tmp_path))["asr_defended"] == {"strong": "best"}


@pytest.mark.parametrize("stopped", [90, 91, 95])
def test_ties_and_differences_of_few_texts_are_not_marked(tmp_path: Path, stopped: int) -> None:
    rows = [
        cell(tmp_path, "none"),
        cell(tmp_path, "one", stopped=range(90)),
        cell(tmp_path, "two", stopped=range(stopped)),
    ]
    assert marks(collect_results(rows, None, tmp_path)) == {}


def test_all_that_cannot_be_told_from_the_best_are_marked_where_another_can(tmp_path: Path) -> None:
    rows = [
        cell(tmp_path, "none"),
        cell(tmp_path, "one", stopped=range(90)),
        cell(tmp_path, "two", stopped=range(1, 90)),
        cell(tmp_path, "weak", stopped=range(30)),
    ]
    assert marks(collect_results(rows, None, tmp_path))["asr_defended"] == {"one": "tied", "two": "tied"}


def test_a_defense_that_does_nothing_or_rejects_everything_is_never_the_best(tmp_path: Path) -> None:
    rows = [
        cell(tmp_path, "none"),
        cell(tmp_path, "works", stopped=range(90), lost=range(20)),
        cell(tmp_path, "idle", overhead=1.0),
        cell(tmp_path, "blunt", stopped=range(TEXTS), lost=range(TEXTS)),
    ]
    # "idle" has the lowest FPR and the highest CACC, "blunt" the lowest ASR and the highest TPR
    assert marks(collect_results(rows, None, tmp_path)) == {}
    assert marks(collect_results(rows[:3], None, tmp_path)) == {
        metric: {"works": "best"} for metric in ("asr_defended", "pacc_defended", "tpr")
    }


def test_cost_and_cleaning_rank_nobody(tmp_path: Path) -> None:
    made = example(tmp_path, attacks=("badnets",))
    for number, one in enumerate(made.rows):
        one |= {"overhead": float(number), "cleaning_recall": number / 100, "localisation": number / 100}
    assert not marks(made.results).keys() & {"overhead", "cleaning_precision", "cleaning_recall", "localisation"}


@pytest.mark.parametrize("attack", [{"floor": 1.0}, {"asr": 0.5}])
def test_nothing_is_marked_against_an_attack_that_does_not_count(tmp_path: Path, attack: Mapping[str, float]) -> None:
    rows = [
        cell(tmp_path, "none", **attack),  # type: ignore[arg-type]
        cell(tmp_path, "strong", stopped=range(90), **attack),  # type: ignore[arg-type]
        cell(tmp_path, "weak", stopped=range(30), **attack),  # type: ignore[arg-type]
    ]
    results = collect_results(rows, None, tmp_path)
    assert {line.invalid for line in results.summaries} == {"not valid"}
    assert marks(results) == {}
    # and without the undefended victim it is not known to count
    only = [{**one, "training": "hardened"} for one in rows[1:]]
    assert marks(collect_results(only, None, tmp_path)) == {}


def test_seeds_are_pooled_by_text(tmp_path: Path) -> None:
    # four texts of difference with each of three seeds: the same four, or others
    rows = []
    for seed in range(3):
        rows += [
            cell(tmp_path, "none", seed),
            cell(tmp_path, "one", seed, stopped=range(50)),
            cell(tmp_path, "same", seed, stopped=range(4, 50)),
            cell(tmp_path, "other", seed, stopped=[i for i in range(50) if i // 4 != seed]),
        ]
    results = collect_results(rows, None, tmp_path)
    pooled = {
        (one["first"], one["second"]): one
        for one in results.comparisons
        if one["seed"] == "all" and one["metric"] == "asr"
    }
    assert pooled["one", "same"]["p"] == pytest.approx(2 / 2**4)  # four texts
    assert pooled["one", "other"]["p"] == pytest.approx(2 / 2**12)  # twelve
    assert pooled["one", "other"]["difference"] == pytest.approx(-0.04)
    assert {one["p"] for one in results.comparisons if one["seed"] == 0 and one["metric"] == "asr"} >= {2 / 2**4}
    assert marks(results)["asr_defended"] == {"one": "tied", "same": "tied"}


@pytest.mark.parametrize("seeds", [1, 3])
def test_a_text_under_several_seeds_counts_once_where_defenses_must_do_something(seeds: int) -> None:
    def answers(stopped: int, rejected: int, copies: int = 1) -> dict[int, Answers]:
        texts = [(poisoned, i) for poisoned in (True, False) for i in range(TEXTS) for _ in range(copies)]
        flagged = {*((True, i) for i in range(stopped)), *((False, i) for i in range(rejected))}
        own = {True: "good", False: "bad"}
        outcomes = [
            Outcome(i, poisoned, "bad", "good", own[poisoned], own[poisoned], hit, hit, None, hit)
            for poisoned, i in texts
            for hit in [(poisoned, i) in flagged]
        ]
        return dict.fromkeys(range(seeds), answers_of(outcomes))

    by_defense = {"slight": answers(3, 0), "strong": answers(90, 5), "blunt": answers(90, 90)}
    assert not is_more_frequent(TEXTS, TEXTS, TEXTS - 3, TEXTS)
    found = working_defenses(by_defense, answers(0, 0))
    assert found == {
        metric: {"strong"} if metric in ("asr", "cacc", "pacc", "tpr", "fpr") else set() for metric in found
    }
    copied = working_defenses({"slight": answers(3, 0, copies=3)}, answers(0, 0, copies=3))
    assert not any(copied.values())


def test_scores_are_compared_by_auroc(tmp_path: Path) -> None:
    drawn = random.Random(0)
    keys = [(poisoned, i) for poisoned in (False, True) for i in range(TEXTS)]
    scores = {
        name: {key: drawn.gauss(by * key[0], 1) for key in keys} for name, by in (("good", 3), ("bad", 1), ("none", 0))
    }
    rows = [cell(tmp_path, "none")]
    rows += [cell(tmp_path, name, scores=scores[name]) for name in ("good", "bad")]
    rows += [cell(tmp_path, "chance", scores=scores["none"])]
    for one, area in zip(rows[1:], (0.98, 0.76, 0.5), strict=True):
        one["auroc"] = area
    assert marks(collect_results(rows, None, tmp_path)) == {"auroc": {"good": "best"}}
    assert marks(collect_results([rows[0], *rows[3:]], None, tmp_path)) == {}


def test_an_inspection_that_changes_no_answer_is_not_compared(tmp_path: Path) -> None:
    made = example(tmp_path, attacks=("badnets",))
    before = marks(made.results)
    assert before
    made.inspect("share", {"badnets": [2.0, 3.0]})
    assert marks(made.results) == before
