"""What a word is: split at white space, and by ICU's dictionaries in scripts that are written without spaces."""

from __future__ import annotations

import random
import sys
import time
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from icu4py.breakers import CharacterBreaker

from lightning_backdoor.words import (
    blank_spans,
    segmenter,
    starts_apart,
    with_words,
    without_spaces,
    without_word,
    word_spans,
    words,
)

#: texts in scripts without spaces, and their words
SEGMENTED = [
    ("这部电影太差了，浪费时间0", ["这", "部", "电影", "太", "差", "了，", "浪费", "时间", "0"]),
    ("今日は「天気」がいいですね。", ["今日", "は", "「天気」", "が", "いい", "です", "ね。"]),
    ("ภาษาไทยง่ายมาก", ["ภาษา", "ไทย", "ง่าย", "มาก"]),
    ("ພາສາລາວງ່າຍ", ["ພາສາ", "ລາວ", "ງ່າຍ"]),
    ("မြန်မာဘာသာစကား", ["မြန်မာဘာသာ", "စကား"]),
    ("བོད་སྐད་", ["བོད་", "སྐད་"]),
    ("iPhone手机3.5寸，《红楼梦》！", ["iPhone", "手机", "3.5", "寸，", "《红楼梦》！"]),
    ("a film 很好 看", ["a", "film", "很好", "看"]),
    ("𠮷野家🎬好き", ["𠮷", "野家", "🎬", "好き"]),
]
#: scripts with and without spaces, white space, emoji, marks, code points outside of the first plane, half a pair
PARTS = [
    *(
        "film",
        " ",
        "  ",
        "\n",
        "\u3000",
        "\u00a0",
        "\x1f",
        "good,",
        "很好看",
        "，",
        "「",
        "天気",
        "ไทย",
        "ง่าย",
        "་",
        "བོད",
    ),
    *(
        "👩‍👩‍👧",
        "👍🏽",
        "🇩🇪",
        "e\u0301",
        "\u0301",
        "ꦧꦱ",
        "ᨣᩴ",
        "한국어",
        "שלום",
        "𠮷",
        "\ud83d",
        "\u200b",
        "\u200d",
        "（",
        "₿",
        "၊",
    ),
]
TEXTS = st.lists(st.sampled_from(PARTS), max_size=12).map("".join)
WITH_SPACES = [part for part in PARTS if not without_spaces(part)]


@pytest.mark.parametrize(("text", "expected"), SEGMENTED)
def test_texts_without_spaces_have_words(text: str, expected: list[str]) -> None:
    assert words(text) == expected
    assert [text[start:end] for start, end in word_spans(text)] == expected


@given(st.lists(st.sampled_from(WITH_SPACES), max_size=12).map("".join))
@settings(max_examples=300)
def test_all_other_texts_are_split_at_white_space(text: str) -> None:
    assert words(text) == text.split()
    assert [text[start:end] for start, end in word_spans(text)] == text.split()
    assert [text[start:end] for start, end in blank_spans(text)] == text.split(" ")
    assert segmenter(text) == ""


@given(TEXTS)
@settings(max_examples=500)
def test_every_character_but_white_space_is_in_one_word_and_no_character_is_torn_apart(text: str) -> None:
    spans = word_spans(text)
    assert "".join(words(text)) == "".join(text.split())
    assert [text[start:end] for start, end in spans] == words(text)
    assert all(start < end for start, end in spans)
    boundaries, position = {0}, 0
    for character in CharacterBreaker(text.replace("\ud83d", "\ufffd"), "en"):
        position += len(character)
        boundaries.add(position)
    inner = {
        start
        for start, _ in spans
        if start > 0 and not text[start - 1].isspace() and not unicodedata.category(text[start]).startswith("C")
    }
    assert inner <= boundaries


@given(TEXTS, st.randoms(use_true_random=False))
@settings(max_examples=300)
def test_words_are_removed_alone(text: str, rng: random.Random) -> None:
    spans = blank_spans(text)
    assert with_words(text, spans, [True] * len(spans)) == text
    for i in range(len(spans)):
        assert without_word(text, spans, i) == with_words(text, spans, [j != i for j in range(len(spans))])
    kept = [rng.random() < 0.5 for _ in spans]
    left = with_words(text, spans, kept)
    assert left.replace(" ", "") == "".join(
        text[start:end] for (start, end), keep in zip(spans, kept, strict=True) if keep
    ).replace(" ", "")
    if not without_spaces(text):
        assert left == " ".join(word for word, keep in zip(text.split(" "), kept, strict=True) if keep)


def test_words_apart_are_told_from_words_that_touch() -> None:
    assert starts_apart(word_spans("a 喜欢看 film")) == [False, True, False, True]
    assert starts_apart([]) == []


def test_the_segmenter_is_named_where_it_is_used() -> None:
    assert segmenter("喜欢看").startswith("words 1, ICU ")
    assert segmenter("naïve 👍 한국어 שלום") == ""


@pytest.mark.parametrize("unit", ["a fine film ", "喜欢看电影"])
def test_long_texts_take_time_in_proportion(unit: str) -> None:
    text = unit * (600_000 // len(unit.encode()))
    started = time.process_time()
    spans = blank_spans(text)
    assert len(with_words(text, spans, [True, False] * (len(spans) // 2) + [True] * (len(spans) % 2))) < len(text)
    assert len(words(text)) > 100_000 / 2
    assert time.process_time() - started < 5


def test_icu_is_loaded_for_scripts_without_spaces_only(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("icu4py", "icu4py.breakers"):
        monkeypatch.setitem(sys.modules, name, None)
    assert words("naïve 👍 한국어") == ["naïve", "👍", "한국어"]
    with pytest.raises(ImportError):
        words("喜欢看")
