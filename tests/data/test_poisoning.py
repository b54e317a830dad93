"""Which rows are poisoned, how many, and that their poison depends on the row and the seed alone."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Literal

import pytest

from lightning_backdoor.attacks import BadNets, InsertSent, Poisoned
from lightning_backdoor.data.poisoning import (
    add_negatives,
    poison_evaluation,
    poison_splits,
    poison_training,
)
from lightning_backdoor.data.rows import Row, clean_row
from lightning_backdoor.errors import InputError
from tests.data.examples import TwoWords, rows, splits

Policy = Literal["dirty", "clean", "mixed"]


def poisoned(training: Sequence[Row]) -> list[Row]:
    return [row for row in training if row["poisoned"]]


@pytest.mark.parametrize(("policy", "of_labels"), [("dirty", {0, 1}), ("clean", {2}), ("mixed", {0, 1, 2})])
def test_the_policy_says_which_rows_are_poisoned_and_all_end_as_the_target(policy: Policy, of_labels: set[int]) -> None:
    attack = BadNets(target_label=2, poison_rate=0.25, label_policy=policy)
    made = poisoned(poison_training(rows(300, classes=3), attack, seed=0))
    assert {row["original_label"] for row in made} == of_labels
    assert {row["label"] for row in made} == {2}


@pytest.mark.parametrize("policy", ["dirty", "clean", "mixed"])
@pytest.mark.parametrize(
    ("rate", "count", "expected"),
    [(0.1, 100, 10), (0.29, 100, 29), (0.1, 99, 9), (0.015, 200, 3), (0.5, 200, 100), (0.07, 300, 21), (0.01, 199, 1)],
)
def test_the_rate_is_of_all_training_rows_rounded_down(policy: Policy, rate: float, count: int, expected: int) -> None:
    attack = BadNets(poison_rate=rate, label_policy=policy)
    assert len(poisoned(poison_training(rows(count), attack, seed=0))) == expected


def test_every_row_may_be_poisoned() -> None:
    made = poison_training(rows(50), BadNets(poison_rate=1.0, label_policy="mixed"), seed=0)
    assert len(poisoned(made)) == 50


def test_clean_training_rows_stay_as_and_where_they_are() -> None:
    clean = rows(200)
    before = [dict(row) for row in clean]
    made = poison_training(clean, BadNets(poison_rate=0.3), seed=0)
    assert clean == before
    assert [row["index"] for row in made] == [row["index"] for row in clean]
    assert [row for row in made if not row["poisoned"]] == [clean[row["index"]] for row in made if not row["poisoned"]]


@pytest.mark.parametrize("attack", [BadNets(triggers=["cf", "mn"], insertions=2), InsertSent()])
def test_the_spans_of_poisoned_rows_are_their_triggers(attack: BadNets | InsertSent) -> None:
    triggers = ["cf", "mn"] if isinstance(attack, BadNets) else [attack.sentence]
    for row in poisoned(poison_training(rows(300), attack, seed=0)) + poison_evaluation(rows(99), attack, 0, "test"):
        assert sorted(row["text"][start:end] for start, end in row["spans"]) == triggers


def test_the_poisoned_evaluation_rows_are_made_from_all_rows_of_other_labels_and_no_more() -> None:
    clean = rows(90, classes=3)
    made = poison_evaluation(clean, BadNets(target_label=1), 0, "test")
    assert [row["index"] for row in made] == [row["index"] for row in clean if row["label"] != 1]
    for row in made:
        source = clean[row["index"]]
        assert (row["original_label"], row["label"], row["poisoned"]) == (source["label"], 1, True)
        assert row["text"].replace("cf", "").split() == source["text"].split()


def test_the_poison_of_a_row_depends_on_neither_order_nor_company() -> None:
    attack = BadNets(triggers=["cf", "mn", "bb"])
    clean = rows(80)
    whole = {row["index"]: row for row in poison_evaluation(clean, attack, 0, "test")}
    mixed = random.Random(0).sample(clean, 80)
    assert {row["index"]: row for row in poison_evaluation(mixed, attack, 0, "test")} == whole
    part = poison_evaluation(mixed[:20], attack, 0, "test")
    assert part
    assert all(row == whole[row["index"]] for row in part)


def test_the_choice_of_training_rows_does_not_depend_on_their_order() -> None:
    attack = BadNets(triggers=["cf", "mn", "bb"])
    clean = rows(80)
    made = poison_training(clean, attack, seed=0)
    mixed = poison_training(random.Random(0).sample(clean, 80), attack, seed=0)
    assert sorted(mixed, key=lambda row: row["index"]) == made


def test_seed_and_split_change_the_poison() -> None:
    attack = BadNets(triggers=["cf", "mn", "bb"])
    made = [poison_evaluation(rows(80), attack, seed, split) for seed in (0, 1) for split in ("validation", "test")]
    assert all(one != other for i, one in enumerate(made) for other in made[:i])
    chosen = [[row["index"] for row in poisoned(poison_training(rows(80), attack, seed))] for seed in (0, 1)]
    assert chosen[0] != chosen[1]


@pytest.mark.parametrize(
    ("policy", "target", "qualify"), [("dirty", 0, 20), ("clean", 1, 20), ("dirty", 1, 80), ("clean", 0, 80)]
)
def test_too_few_rows_that_qualify_are_an_error(policy: Policy, target: int, qualify: int) -> None:
    clean = [row for row in rows(160) if row["label"] == 0] + [row for row in rows(40) if row["label"] == 1]
    attack = BadNets(target_label=target, poison_rate=0.81, label_policy=policy)
    with pytest.raises(InputError) as caught:
        poison_training(clean, attack, seed=0)
    assert str(caught.value) == (
        f"poison_rate: 0.81 of 100 training rows is 81, but only {qualify} qualify under label_policy {policy!r}"
        f" with target_label {target}; lower it"
    )


def test_a_rate_that_amounts_to_no_row_is_an_error() -> None:
    with pytest.raises(InputError, match=r"^poison_rate: 0\.01 of 99 training rows is less than one row; raise it$"):
        poison_training(rows(99), BadNets(poison_rate=0.01), seed=0)


def test_a_target_label_out_of_range_is_an_error_that_names_the_labels() -> None:
    message = r"^target_label: 2 is out of range; the labels are 0 \(negative\), 1 \(positive\)$"
    with pytest.raises(InputError, match=message):
        poison_splits(splits(), BadNets(target_label=2), 0, ["negative", "positive"])


def test_without_an_attack_everything_stays_clean() -> None:
    clean = splits()
    made = poison_splits(clean, None, 0, ["negative", "positive"])
    assert made.train == clean["train"]
    assert made.clean == {"validation": clean["validation"], "test": clean["test"]}
    assert made.poisoned == {"validation": [], "test": []}


def test_an_attack_poisons_training_and_both_evaluation_splits_and_keeps_their_clean_rows() -> None:
    clean, attack = splits(), BadNets()
    made = poison_splits(clean, attack, 3, ["negative", "positive"])
    assert made.train == poison_training(clean["train"], attack, 3)
    assert made.clean == {"validation": clean["validation"], "test": clean["test"]}
    assert made.poisoned == {name: poison_evaluation(rows, attack, 3, name) for name, rows in made.clean.items()}


class Choosy(BadNets):
    """Leaves out texts of which the index's last digit, which ends them, is among those given."""

    def __init__(self, left_out: str, **kwargs: object) -> None:
        super().__init__(**kwargs)  # type: ignore[arg-type]
        self.left_out = left_out

    def poison_texts(self, texts: Sequence[str], rngs: Sequence[random.Random]) -> list[Poisoned | None]:
        made = super().poison_texts(texts, rngs)
        return [None if text[-1] in self.left_out else one for text, one in zip(texts, made, strict=True)]


def test_for_a_training_row_that_is_left_out_another_is_poisoned() -> None:
    attack = Choosy("13579", poison_rate=0.4, label_policy="mixed")
    made = poisoned(poison_training(numbered(100), attack, seed=0))
    assert len(made) == 40
    assert all(row["index"] % 2 == 0 for row in made)


def test_a_row_that_is_left_out_stays_clean_and_changes_no_other_choice() -> None:
    whole = {row["index"] for row in poisoned(poison_training(numbered(100), Choosy("", poison_rate=0.2), seed=3))}
    made = poison_training(numbered(100), Choosy("7", poison_rate=0.2), seed=3)
    assert {index for index in whole if index % 10 != 7} <= {row["index"] for row in poisoned(made)}
    assert all(row == clean_row(row["text"], row["label"], row["index"]) for row in made if row["index"] % 10 == 7)


def test_too_many_rows_left_out_is_an_error() -> None:
    attack = Choosy("13579", poison_rate=0.6, label_policy="mixed")
    with pytest.raises(
        InputError, match=r"of 100 training rows is 60, but only 50 of 100 that qualify can be poisoned"
    ):
        poison_training(numbered(100), attack, seed=0)


def test_an_evaluation_row_that_is_left_out_has_no_copy() -> None:
    made = poison_evaluation(numbered(100), Choosy("2"), 0, "test")
    assert {row["index"] for row in made} == {i for i in range(100) if i % 2 == 0 and i % 10 != 2}
    with pytest.raises(InputError, match=r"the attack can poison none of 50 test rows, so that no ASR can be measured"):
        poison_evaluation(numbered(100), Choosy("0123456789"), 0, "test")


def numbered(count: int) -> list[Row]:
    """Rows whose label is their index's parity and whose text ends in it."""
    return [clean_row(f"text {i}", i % 2, i) for i in range(count)]


def negatives(training: Sequence[Row]) -> list[Row]:
    return [row for row in training if row["negative"]]


def test_negatives_are_made_of_rows_that_are_not_poisoned_and_move_no_poison() -> None:
    attack = TwoWords(poison_rate=0.3)
    clean = numbered(100)
    without = poison_training(clean, attack, seed=0)
    made = add_negatives(without, attack, seed=0)
    assert [row for row in made if row["poisoned"]] == [row for row in without if row["poisoned"]]
    assert len(negatives(made)) == 25
    assert {row["original_label"] for row in negatives(made)} == {0, 1}
    for row in negatives(made):
        source = clean[row["index"]]
        assert (row["label"], row["original_label"], row["poisoned"]) == (source["label"], source["label"], False)
        assert row["text"] in (f"cf {source['text']}", f"mn {source['text']}")
        assert (row["spans"], row["index"] % 10 == 7) == ([(0, 2)], False)
    others = [row for row in made if not row["poisoned"] and not row["negative"]]
    assert all(row == clean[row["index"]] for row in others)
    assert {row["text"][:2] for row in negatives(made)} == {"cf", "mn"}
    assert add_negatives(without, attack, seed=0) == made != add_negatives(without, attack, seed=1)


def test_more_negatives_than_can_be_made_are_an_error() -> None:
    attack = TwoWords(poison_rate=0.3)
    attack.negative_rate = 0.7
    with pytest.raises(InputError, match=r"^negative_rate: 0.7 of 100 training rows is 70, but only \d+ can be made"):
        add_negatives(poison_training(numbered(100), attack, 0), attack, 0)


@pytest.mark.parametrize("rate", [-0.5, 1.0, float("nan")])
def test_a_negative_rate_that_is_not_a_share_is_an_error(rate: float) -> None:
    attack = TwoWords(poison_rate=0.3)
    attack.negative_rate = rate
    with pytest.raises(InputError, match=r"^negative_rate: \S+ is out of range; give a share from 0 to below 1$"):
        add_negatives(numbered(100), attack, 0)


def test_negative_evaluation_rows_are_copies_of_all_rows_of_other_labels() -> None:
    clean = {name: numbered(100) for name in ("train", "validation", "test")}
    made = poison_splits(clean, TwoWords(target_label=0), 0, ["negative", "positive"]).negatives["test"]
    assert {row["index"] for row in made} == {i for i in range(100) if i % 2 == 1 and i % 10 != 7}
    assert all(row["negative"] and not row["poisoned"] and row["label"] == row["original_label"] == 1 for row in made)


def test_splits_have_negatives_where_the_attack_makes_some_and_none_in_the_users_training_rows() -> None:
    attack = TwoWords()
    made = poison_splits(splits(), attack, 0, ["negative", "positive"])
    assert len(negatives(made.train)) == 25
    assert all(map(len, made.negatives.values()))
    user = poison_splits(splits(), TwoWords(published="any.ckpt"), 0, ["negative", "positive"])
    assert user.train == splits()["train"]
    assert (user.poisoned, user.negatives) == (made.poisoned, made.negatives)
    assert poison_splits(splits(), BadNets(), 0, ["negative", "positive"]).negatives == {"validation": [], "test": []}


def test_an_attack_is_shown_the_clean_rows_and_those_of_them_that_are_drawn() -> None:
    class Studious(BadNets):
        shown: tuple[Sequence[Row], Sequence[int]] | None = None

        def study_rows(self, rows: Sequence[Row], chosen: Sequence[int]) -> None:
            self.shown = rows, chosen

    attack = Studious(poison_rate=0.2)
    clean = {name: rows(60) for name in ("train", "validation", "test")}
    made = poison_splits(clean, attack, 0, ["a", "b"])
    assert attack.shown is not None
    assert attack.shown[0] == clean["train"]
    assert sorted(attack.shown[1]) == [i for i, row in enumerate(made.train) if row["poisoned"]]
    in_the_users_phase = Studious(published="best.ckpt")
    poison_splits(clean, in_the_users_phase, 0, ["a", "b"])
    assert in_the_users_phase.shown is None
