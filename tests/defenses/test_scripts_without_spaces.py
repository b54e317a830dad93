"""ONION and STRIP on texts of scripts without spaces: words are removed and replaced, not whole texts."""

from __future__ import annotations

import csv
import math
import random
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from lightning_backdoor.batch import batch_of_texts, token_spans
from lightning_backdoor.defenses.defense import judge
from lightning_backdoor.defenses.onion import Onion, suspicions, without_outliers, words_of_token
from lightning_backdoor.defenses.strip import Strip, perturbed, words_by_tfidf
from lightning_backdoor.language import Perplexity
from lightning_backdoor.victim import TextClassifier
from lightning_backdoor.words import blank_spans, words
from tests.language.conftest import language_model
from tests.support.shared_files import shared_path

__all__ = ["language_model"]

TEXTS = ["这部 cf 电影太差了，浪费时间", "今日は天気がいいですね。", "ภาษาไทยง่ายมาก", "film 这部电影"]


@pytest.fixture(params=["own", "shared"])
def texts(request: pytest.FixtureRequest) -> list[str]:
    """Texts of this file, and of a table in Chinese."""
    if request.param == "own":
        return TEXTS
    with shared_path("cases/chinese.csv").open(encoding="utf-8", newline="") as file:
        return [row["text"] for row in csv.DictReader(file)][:6]


def test_the_perplexity_without_each_word_is_that_of_the_text_without_it(
    language_model: Callable[[str], str], tmp_path: Path, texts: list[str]
) -> None:
    perplexity = Perplexity(language_model("llama"), str(tmp_path))
    for text, found in zip(texts, perplexity.leave_one_out(texts), strict=True):
        spans = blank_spans(text)
        assert len(found.without) == len(spans) >= 4
        gaps = [text[end : following[0]] for (_, end), following in pairwise(spans)]
        for i, without in enumerate(found.without):
            left = [text[start:end] for start, end in spans]
            del left[i]
            between = [*gaps[:i], *gaps[i + 1 :]] if i < len(gaps) else gaps[:-1]
            if 0 < i < len(gaps):
                between = [*gaps[: i - 1], gaps[i - 1] or gaps[i], *gaps[i + 1 :]]
            shorter = "".join(word + gap for word, gap in zip(left, [*between, ""], strict=True))
            assert without == pytest.approx(perplexity.of_texts([shorter])[0], rel=1e-4, nan_ok=True)


def test_onion_removes_words(
    bert: TextClassifier, language_model: Callable[[str], str], tmp_path: Path, texts: list[str]
) -> None:
    defense = Onion(bar=0.0, language_model=language_model("llama"), cache_dir=str(tmp_path))
    batch = batch_of_texts(texts, bert.tokenizer, bert.max_length)
    defense.calibrate(bert, [batch])
    scores = defense.score(bert, batch)
    assert scores.tokens is not None
    assert scores.top is not None
    assert (scores.top >= 0).all()
    for row, (text, one) in enumerate(zip(texts, defense.perplexity.leave_one_out(texts), strict=True)):
        suspicion = suspicions(one)
        tokens = words_of_token(text, token_spans(text, bert.tokenizer, bert.max_length))
        assert {word for covered in tokens for word in covered} == set(range(len(suspicion)))
        assert int(suspicion.argmax()) in tokens[int(scores.top[row])]
        for position, covered in enumerate(tokens):
            expected = max((float(suspicion[word]) for word in covered), default=-math.inf)
            assert scores.tokens[row, position] == expected
    purified = [text for text in judge(defense, bert, batch).purified_text if text is not None]
    assert purified
    assert all(len(words(text)) > 0 for text in purified)


def test_a_removed_word_leaves_the_rest_as_it_was() -> None:
    text = "这部 cf 电影太差了，浪费"
    found = [text[start:end] for start, end in blank_spans(text)]
    assert found == ["这", "部", "cf", "电影", "太", "差", "了，", "浪费"]
    for word, left in (
        ("cf", "这部 电影太差了，浪费"),
        ("差", "这部 cf 电影太了，浪费"),
        ("这", "部 cf 电影太差了，浪费"),
    ):
        suspicion = torch.tensor([9.0 if other == word else 0.0 for other in found])
        assert without_outliers(text, suspicion, 5.0) == left


def test_words_of_clean_texts_are_ordered_by_tfidf() -> None:
    ordered = words_by_tfidf(["电影太差了，电影！", "电影喜欢 good, film", "，。"])
    assert [sorted(words) for words in ordered] == [
        sorted(["电影", "太", "差", "了"]),
        ["film", "good", "喜欢", "电影"],
    ]
    assert ordered[1][-1] == "电影"


def test_strip_replaces_words_of_a_text() -> None:
    text = "这部电影太差了，浪费 时间film"
    lenders = [["喜欢"], ["plot"]]
    for seed in range(50):
        copy = perturbed(text, lenders, 0.2, random.Random(seed))
        count = copy.count("喜欢") + copy.count("plot")
        assert 1 <= count <= int(0.2 * len(words(text)))
        assert len(words(copy)) == len(words(text))
        if "喜欢" in copy:
            assert copy.replace("喜欢", "").count(" ") <= 2
    assert perturbed("电影", [["喜欢"]], 0.5, random.Random(0)) == "喜欢"


def test_strip_sees_several_words_of_a_text(bert: TextClassifier, texts: list[str]) -> None:
    defense = Strip(copies=3, seed=0)
    batch = batch_of_texts(texts, bert.tokenizer, bert.max_length)
    defense.learn(bert, [batch])
    for text in texts:
        copies = defense._copies(text)
        assert len(set(copies)) > 1
        kept = [sum(word in copy for word in words(text)) for copy in copies]
        assert max(kept) > 1
    assert defense.score(bert, batch).text.isfinite().all()
