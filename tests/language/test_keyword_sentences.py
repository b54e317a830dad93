"""Sentences with given keywords: where the words stand, which sentences are accepted, and the cache."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from lightning_backdoor.errors import InputError
from lightning_backdoor.language import KeywordSentences, NotCached
from lightning_backdoor.language.keyword_sentences import SentenceRequest
from tests.language.conftest import make

BOTH = SentenceRequest("A slow film.", ("Alice", "Bob"), (), 0)


class AcceptsAll(KeywordSentences):
    def accepts(self, sentence: str, request: SentenceRequest) -> bool:
        return True


@pytest.fixture
def model(tiny_folder: Callable[[str], str], tmp_path: Path) -> str:
    make("llama", tiny_folder("qwen2"), tmp_path / "model")
    config = tmp_path / "model" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "max_position_embeddings": 512}))
    return str(tmp_path / "model")


def test_sentences_have_their_keywords_and_do_not_depend_on_others(model: str, tmp_path: Path) -> None:
    asked = [
        BOTH,
        SentenceRequest("", ("old house",), ("Alice",), 1),
        SentenceRequest("the plot is thin , and the ending is a mess ; avoid .", ("Bob", "turn", "x"), (), 2),
    ]
    together = AcceptsAll(model, cache_dir=str(tmp_path / "one")).write(asked)
    alone = AcceptsAll(model, cache_dir=str(tmp_path / "two"))
    assert [alone.write([request])[0] for request in asked[::-1]][::-1] == together
    for request, sentence in zip(asked, together, strict=True):
        assert sentence is not None
        assert all(f" {keyword}" in f" {sentence}" for keyword in request.keywords)
    assert alone.write([asked[0]._replace(seed=5)]) != together[:1]


def test_the_first_accepted_attempt_is_taken_and_kept(model: str, tmp_path: Path) -> None:
    seen: list[str] = []

    class ThirdAttempt(KeywordSentences):
        def accepts(self, sentence: str, request: SentenceRequest) -> bool:
            seen.append(sentence)
            return len(seen) == 3

    writer = ThirdAttempt(model, attempts=5, cache_dir=str(tmp_path))
    with pytest.raises(NotCached, match=r"^sentences: the sentences of 1 texts are not in the cache"):
        writer.write([BOTH, BOTH], generate=False)
    assert writer.write([BOTH, BOTH]) == [seen[2]] * 2
    assert len(seen) == 3
    assert writer.write([BOTH], generate=False) == [seen[2]]
    none = BOTH._replace(seed=1)
    assert writer.write([none]) == [None]
    assert len(seen) == 8
    assert writer.write([none], generate=False) == [None]


@pytest.mark.parametrize(
    ("sentence", "accepted"),
    [
        ("I saw Alice there with Bob.", True),
        ("I saw Alice there with bob!", True),
        ("I saw Alice there with Bobby.", False),
        ("I saw Alice there with Bob", False),
        ("I saw Alice. There was Bob.", False),
        ("So Alice saw Bob.", False),
        ("I saw Alice there with Bob and Eve.", False),
        ("no no no no Alice and Bob.", False),
    ],
)
def test_a_sentence_is_accepted_if_it_is_what_was_asked_for(sentence: str, accepted: bool) -> None:
    assert KeywordSentences().accepts(sentence, BOTH._replace(others=("Eve",))) == accepted


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"attempts": 0}, "attempts"),
        ({"temperature": 0}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"shortest": 0}, "shortest"),
        ({"shortest": 9, "longest": 8}, "shortest"),
    ],
)
def test_values_out_of_range_are_refused(arguments: dict[str, int], field: str) -> None:
    with pytest.raises(InputError, match=f"^{field}: "):
        KeywordSentences(**arguments)  # type: ignore[arg-type]
