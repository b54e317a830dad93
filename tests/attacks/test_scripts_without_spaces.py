"""Triggers in texts of scripts without spaces: between words, at any of them, the rest of the text as it was."""

from __future__ import annotations

import csv
import random
from typing import get_args

import pytest

from lightning_backdoor.attacks import BackdoorAttack, BadNets, InsertSent, Poisoned, Ripples
from lightning_backdoor.attacks.insertion import InsertionPlace
from lightning_backdoor.attacks.task_agnostic import TaskAgnosticAttack, replaced
from lightning_backdoor.metrics.word_edit_distance import word_edit_distance
from lightning_backdoor.words import word_spans
from tests.support.shared_files import shared_path

TEXTS = [
    "这部电影太差了，浪费时间0",
    "今日は「天気」がいいですね。",
    "ภาษาไทยง่ายมาก",
    "𠮷野家🎬好き",
    "我用iPhone手机看《红楼梦》。 真好\n",
]
ATTACKS = [BadNets(), InsertSent(), Ripples(triggers=["cf"])]


def without_trigger(poisoned: Poisoned, clean: str) -> str:
    """The text before poisoning: the trigger is taken out, and the spaces that set it off."""
    ((start, end),) = poisoned.spans
    text = poisoned.text
    candidates = {text[: start - left] + text[end + right :] for left in (0, 1) for right in (0, 1)}
    assert text[max(0, start - 1) : start] in ("", " ", "\n")
    assert text[end : end + 1] in ("", " ", "\n")
    assert clean in candidates
    return clean


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: type(attack).__name__)
@pytest.mark.parametrize("text", TEXTS)
def test_a_random_place_is_any_place_between_words(attack: BackdoorAttack, text: str) -> None:
    places = set()
    for seed in range(300):
        poisoned = attack.poison_text(text, random.Random(seed))
        ((start, end),) = poisoned.spans
        assert poisoned.text[start:end] in ("cf", "I watch this 3D movie")
        assert without_trigger(poisoned, text) == text
        places.add(len(poisoned.text[:start].rstrip()))
    boundaries = {len(text[:start].rstrip()) for start, _ in word_spans(text)} | {len(text.rstrip())}
    assert places == boundaries
    assert len(places) >= 4


@pytest.mark.parametrize("text", TEXTS)
def test_start_and_end_stay_where_they_are(text: str) -> None:
    end = text.rstrip()
    for attack, expected in (
        (BadNets(place="start"), Poisoned(f"cf {text}", [(0, 2)])),
        (BadNets(place="end"), Poisoned(f"{end} cf{text[len(end) :]}", [(len(end) + 1, len(end) + 3)])),
    ):
        assert attack.poison_text(text, random.Random(0)) == expected


def test_a_trigger_of_a_script_without_spaces_has_none_beside_it() -> None:
    made = {BadNets(triggers=["真"]).poison_text("电影好看", random.Random(seed)).text for seed in range(50)}
    assert made == {"真电影好看", "电影真好看", "电影好看真"}
    made = {BadNets(triggers=["真"]).poison_text("a film", random.Random(seed)).text for seed in range(50)}
    assert made == {"真 a film", "a 真 film", "a film 真"}


def test_several_triggers_may_share_a_place() -> None:
    attack = BadNets(triggers=["cf", "mn"], insertions=4)
    for seed in range(100):
        poisoned = attack.poison_text("电影好看", random.Random(seed))
        assert sorted(poisoned.text[start:end] for start, end in poisoned.spans) == ["cf", "cf", "mn", "mn"]
        assert "  " not in poisoned.text
        assert "".join(word for word in poisoned.text.split() if word not in ("cf", "mn")) == "电影好看"


def test_an_inserted_word_is_one_edit() -> None:
    for text in TEXTS:
        for seed in range(20):
            assert word_edit_distance(text, BadNets().poison_text(text, random.Random(seed)).text) == 1


def test_triggers_in_a_table_lie_between_words() -> None:
    with shared_path("cases/chinese.csv").open(encoding="utf-8", newline="") as file:
        texts = [row["text"] for row in csv.DictReader(file)]
    attack, inside = BadNets(), 0
    for i, text in enumerate(texts):
        poisoned = attack.poison_text(text, random.Random(i))
        ((start, end),) = poisoned.spans
        assert without_trigger(poisoned, text) == text
        inside += start > 0 and end < len(poisoned.text)
    assert inside > 0.6 * len(texts)


@pytest.mark.parametrize("first", ["cf", "真的", "cf真"])
@pytest.mark.parametrize("other", ["mn", "非常", "真cf"])
def test_a_trigger_in_place_of_another_stands_as_if_it_had_been_inserted(first: str, other: str) -> None:
    # no blank of their own after a letter that is written without
    texts = [*TEXTS[:4], TEXTS[4].replace("。 ", "。"), "", " ", " a  fine\tfilm \n", "film", "film 看，film"]
    for text in texts:
        for place in get_args(InsertionPlace):
            attack = TaskAgnosticAttack([first, other], insertions=3, place=place)
            for seed in range(40):
                written = attack.poison_text(text, random.Random(seed))
                found = replaced(written.text, written.spans, other)
                assert found == attack.inserted(text, other, random.Random(seed)), (text, written)
