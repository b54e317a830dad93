"""The word inventory: counts of texts, p-values, and hostile words."""

from __future__ import annotations

import math

import pytest
from scipy.stats import hypergeom

from lightning_backdoor.outputs import word_inventory
from lightning_backdoor.outputs.word_inventory import WordInventory, words_text


def inventory_of(texts: list[str], flags: list[bool]) -> WordInventory:
    inventory = WordInventory()
    inventory.add(texts, flags)
    return inventory


def test_a_word_counts_once_for_each_text_in_lower_case_without_punctuation() -> None:
    inventory = inventory_of(["CF, cf film.", "A film", "“cf”"], [True, False, True])
    assert (inventory.texts, inventory.flagged) == (3, 2)
    assert inventory.containing == {"cf": 2, "film": 2, "a": 1, ",": 1, ".": 1, "“": 1, "”": 1}
    assert inventory.flagged_containing["cf"] == 2
    assert inventory_of(["好看的电影"], [True]).containing["电影"] == 1


def test_words_that_stand_out_have_the_p_value_of_their_count_times_the_number_of_words() -> None:
    texts = [f"{'cf mn' if i % 10 == 0 else 'mn' if i % 7 == 0 else 'film'} t{i % 50}" for i in range(400)]
    inventory = inventory_of(texts, [i % 10 == 0 for i in range(400)])
    found = {word.word: word for word in inventory.standing_out()}
    words = len(inventory.containing)
    mn = sum("mn" in text for text in texts)
    for word, flagged, count in (("cf", 40, 40), ("mn", 40, mn)):
        assert (found[word].flagged, found[word].texts) == (flagged, count)
        expected = words * hypergeom.sf(flagged - 1, 400, count, 40)
        assert math.exp(found[word].log_p) == pytest.approx(expected, rel=1e-6)
    assert [*found][:2] == ["cf", "mn"]
    assert all(word.log_p < math.log(0.01) for word in found.values())
    assert "film" not in found


def test_no_word_stands_out_among_texts_flagged_by_chance() -> None:
    texts = [f"a film of {i % 7} and {i % 11}" for i in range(300)]
    assert not inventory_of(texts, [i % 13 == 0 for i in range(300)]).standing_out()
    assert not inventory_of(texts, [True] * 300).standing_out()
    assert not WordInventory().standing_out()


def test_counts_of_processes_are_added() -> None:
    texts, flags = [f"cf {i}" if i % 5 == 0 else f"{i}" for i in range(200)], [i % 5 == 0 for i in range(200)]
    whole, half = inventory_of(texts, flags), inventory_of(texts[1::2], flags[1::2])
    half.merge(inventory_of(texts[::2], flags[::2]))
    assert half.standing_out() == whole.standing_out()
    assert (half.texts, half.flagged) == (200, 40)


def test_hostile_words_are_escaped_and_cut_and_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    evil = "\x1b[31m\u202e" + "x" * 10_000
    inventory = inventory_of([evil] * 20 + ["film"] * 200, [True] * 20 + [False] * 200)
    assert max(map(len, inventory.containing)) <= word_inventory.COUNTED
    shown = words_text(inventory.standing_out())
    assert shown.isprintable()
    assert len(shown) < 100
    monkeypatch.setattr(word_inventory, "MAX_WORDS", 100)
    inventory.add([f"{i}" for i in range(101)], [False] * 101)
    assert inventory.too_many
    assert not inventory.containing
    assert not inventory.standing_out()
    assert inventory.texts == 321


def test_at_most_ten_words_are_shown() -> None:
    inventory = inventory_of([" ".join("abcdefghijkl")] * 9 + ["x"] * 90, [True] * 9 + [False] * 90)
    shown = words_text(inventory.standing_out())
    assert shown.count("e-") == 10
    assert shown.endswith(", and 2 more")
