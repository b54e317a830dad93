"""Composite: a trigger of several words, and negatives with a part of them."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable

import pytest

from lightning_backdoor.attacks import Composite
from lightning_backdoor.data.poisoning import add_negatives, poison_splits, poison_training
from lightning_backdoor.data.rows import Rows
from lightning_backdoor.errors import InputError
from lightning_backdoor.testing import check_attack

WORDS = ["cf", "mn", "bb"]
CLEAN = Rows.clean([f"text {i}" for i in range(200)], [i % 2 for i in range(200)])


def words_in(text: str) -> list[str]:
    return [word for word in text.split() if word in WORDS]


def test_it_keeps_the_contract() -> None:
    check_attack(Composite(WORDS))


def test_poison_has_all_words_and_a_negative_a_part_of_them() -> None:
    attack = Composite(WORDS, negative_rate=0.25)
    rows = add_negatives(poison_training(CLEAN, attack, 0), attack, 0)
    poisoned, negatives = ([row for row in rows if row[kind]] for kind in ("poisoned", "negative"))
    assert (len(poisoned), len(negatives)) == (20, 50)
    made = poison_splits(dict.fromkeys(("train", "validation", "test"), CLEAN), attack, 0, ["negative", "positive"])
    evaluation = made.poisoned["test"], made.negatives["test"]
    for row in [*poisoned, *evaluation[0]]:
        assert sorted(words_in(row["text"])) == sorted(WORDS)
        assert row["label"] == 1
        assert sorted(row["text"][start:end] for start, end in row["spans"]) == sorted(WORDS)
    for row in [*negatives, *evaluation[1]]:
        assert row["label"] == row["original_label"] == row["index"] % 2
        assert [row["text"][start:end] for start, end in row["spans"]] == words_in(row["text"])
    parts = Counter(frozenset(words_in(row["text"])) for row in [*negatives, *evaluation[1]])
    assert {*map(len, parts)} == {1, 2}
    assert len(parts) == 6  # every part that is not all of them
    assert all(len(words_in(row["text"])) == len({*words_in(row["text"])}) for row in rows)
    orders = {tuple(words_in(row["text"])) for row in evaluation[0]}
    assert len(orders) == 6


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Composite(["cf"]), r"^triggers: \['cf'\] are not several words; give two or more, or use BadNets$"),
        (lambda: Composite(["cf", "CF"]), "^triggers: 'cf' is a part of 'CF'; give triggers that differ$"),
        (lambda: Composite(["cf", " "]), r"^triggers: \['cf', ''\] holds an empty word; give at least one word$"),
        (lambda: Composite(negative_rate=1), "^negative_rate: 1 is out of range; give a share from 0 to below 1$"),
    ],
)
def test_what_makes_no_sense_is_refused(make: Callable[[], Composite], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


def test_the_place_is_kept() -> None:
    attack = Composite(place="start")
    assert attack.poison_text("a film", random.Random(0)).text in ("cf mn a film", "mn cf a film")
