"""Where BadNets and InsertSent put their triggers, and what they leave as it was."""

from __future__ import annotations

import random
from typing import Any, Literal, get_args

import pytest

from lightning_backdoor.attacks import BadNets, InsertSent, Poisoned
from lightning_backdoor.errors import InputError

Place = Literal["start", "end", "random"]
PLACES: tuple[Place, ...] = get_args(Place)
WORDS = [
    "film",
    "good,",
    "it's",
    "—",
    "🎬",
    "👩‍👩‍👧",
    "שלום",
    "naïve",
    "<b>",
    "cf",
    "I",
    "watch",
    "Ω",
    "a\u200bb",
    "&amp;",
]
SPACES = [" ", "  ", "\n", "\t", " \n ", "\r\n", "\u00a0", "\u2003", "\x1f"]


def texts(count: int) -> list[str]:
    """Random texts with all manner of words and spaces, the empty and the blank ones among them."""
    rng = random.Random(0)
    made = ["", " ", "\n\t", "film", " film", "film\n"]
    while len(made) < count:
        parts = [rng.choice(["", *SPACES])]
        for _ in range(rng.randrange(8)):
            parts += [rng.choice(WORDS), rng.choice(SPACES)]
        made.append("".join(parts[: rng.randrange(1, len(parts) + 1)]))
    return made


def without_triggers(poisoned: Poisoned) -> str:
    """The text before poisoning: each trigger is taken out, and the one space that sets it off."""
    text = poisoned.text
    for start, end in reversed(poisoned.spans):
        if text[end : end + 1] == " ":
            end += 1
        elif start > 0:
            assert text[start - 1] == " "
            start -= 1
        text = text[:start] + text[end:]
    return text


def assert_well_placed(clean: str, poisoned: Poisoned, triggers: list[str]) -> None:
    """The triggers stand between words in the places that the spans say, and nothing else has changed."""
    assert sorted(poisoned.text[start:end] for start, end in poisoned.spans) == sorted(triggers)
    edges = [edge for span in poisoned.spans for edge in span]
    assert edges == sorted(edges)
    for start, end in poisoned.spans:
        assert start == 0 or poisoned.text[start - 1].isspace()
        assert end == len(poisoned.text) or poisoned.text[end].isspace()
    if clean.strip():
        assert without_triggers(poisoned) == clean
    else:  # no word to be set off from
        assert poisoned.text == " ".join(poisoned.text[start:end] for start, end in poisoned.spans) + clean


@pytest.mark.parametrize("place", PLACES)
def test_triggers_stand_between_words_where_the_spans_say_and_all_else_is_kept(place: Place) -> None:
    one = BadNets(triggers=["cf"], place=place)
    four = BadNets(triggers=["cf", "mn", "bb", "tq"], insertions=4, place=place)
    sentence = InsertSent(place=place)
    for seed, clean in enumerate(texts(1500)):
        assert_well_placed(clean, one.poison_text(clean, random.Random(seed)), ["cf"])
        assert_well_placed(clean, four.poison_text(clean, random.Random(seed)), ["cf", "mn", "bb", "tq"])
        assert_well_placed(clean, sentence.poison_text(clean, random.Random(seed)), ["I watch this 3D movie"])


@pytest.mark.parametrize("attack", [BadNets(triggers=["cf"]), InsertSent(sentence="cf")])
def test_a_random_place_is_any_place_between_words(attack: BadNets | InsertSent) -> None:
    made = {attack.poison_text("one  two\nthree", random.Random(seed)).text for seed in range(100)}
    assert made == {"cf one  two\nthree", "one  cf two\nthree", "one  two\ncf three", "one  two\nthree cf"}


@pytest.mark.parametrize("attack", [BadNets(triggers=["cf"], place="start"), InsertSent(sentence="cf", place="start")])
def test_the_start_is_before_the_first_word(attack: BadNets | InsertSent) -> None:
    assert attack.poison_text(" fine film ", random.Random(0)) == Poisoned(" cf fine film ", [(1, 3)])


@pytest.mark.parametrize("attack", [BadNets(triggers=["cf"], place="end"), InsertSent(sentence="cf", place="end")])
def test_the_end_is_after_the_last_word(attack: BadNets | InsertSent) -> None:
    assert attack.poison_text(" fine film\n", random.Random(0)) == Poisoned(" fine film cf\n", [(11, 13)])


def test_fewer_insertions_than_triggers_take_some_of_them_each_at_most_once() -> None:
    attack = BadNets(triggers=["cf", "mn", "bb", "tq"], insertions=2)
    drawn = [attack.poison_text("", random.Random(seed)).text.split() for seed in range(200)]
    assert all(first != second for first, second in drawn)
    assert {word for words in drawn for word in words} == {"cf", "mn", "bb", "tq"}


def test_more_insertions_than_triggers_go_round_them_evenly() -> None:
    attack = BadNets(triggers=["cf", "mn"], insertions=5)
    for seed in range(50):
        words = attack.poison_text("a fine film", random.Random(seed)).text.split()
        assert {words.count("cf"), words.count("mn")} == {2, 3}


def test_the_sentence_stays_in_one_piece() -> None:
    attack = InsertSent(sentence="no cross, no crown")
    for seed, clean in enumerate(texts(300)):
        poisoned = attack.poison_text(clean, random.Random(seed))
        assert len(poisoned.spans) == 1
        assert "no cross, no crown" in poisoned.text


def test_spaces_around_a_trigger_are_no_part_of_it() -> None:
    for attack in (BadNets(triggers=[" cf\n"], place="start"), InsertSent(sentence=" cf\n", place="start")):
        assert attack.poison_text("fine", random.Random(0)) == Poisoned("cf fine", [(0, 2)])


@pytest.mark.parametrize("attack", [BadNets(triggers=["cf", "mn"], insertions=3), InsertSent()])
def test_many_texts_are_poisoned_as_each_alone(attack: BadNets | InsertSent) -> None:
    clean = texts(200)
    together = attack.poison_texts(clean, [random.Random(i) for i in range(200)])
    assert together == [attack.poison_text(text, random.Random(i)) for i, text in enumerate(clean)]


def test_ten_thousand_words_are_poisoned() -> None:
    clean = "word " * 10_000
    poisoned = BadNets(triggers=["cf"]).poison_text(clean, random.Random(0))
    assert_well_placed(clean, poisoned, ["cf"])


@pytest.mark.parametrize("triggers", [[], [""], ["cf", " "]])
def test_an_empty_trigger_is_refused(triggers: list[str]) -> None:
    with pytest.raises(InputError, match=r"^triggers: .* give at least one word$"):
        BadNets(triggers=triggers)


def test_an_empty_sentence_is_refused() -> None:
    with pytest.raises(InputError, match=r"^sentence: ' ' is empty; give at least one word$"):
        InsertSent(sentence=" ")


def test_inserting_nothing_is_refused() -> None:
    with pytest.raises(InputError, match=r"^insertions: 0 inserts nothing; give at least 1$"):
        BadNets(insertions=0)


def test_an_unknown_place_is_refused() -> None:
    place: Any = "middle"
    for attack in (BadNets, InsertSent):
        with pytest.raises(InputError, match=r"^place: 'middle' is unknown; give start, end or random$"):
            attack(place=place)
