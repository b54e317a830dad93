"""Texts of 600 kB: what is done beside the networks takes time in proportion to a text's length."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from lightning_backdoor.batch import batch_of_texts, token_spans
from lightning_backdoor.defenses.character_noise import replace_spans
from lightning_backdoor.defenses.gradient_attention import UNCUT, GradientAttention
from lightning_backdoor.defenses.onion import Onion, without_outliers, words_of_token
from lightning_backdoor.language import Perplexity
from lightning_backdoor.language.perplexity import leave_one_out
from lightning_backdoor.metrics.word_edit_distance import word_edit_distance
from lightning_backdoor.outputs.token_view import pieces
from lightning_backdoor.victim import TextClassifier
from lightning_backdoor.words import blank_spans
from tests.language.conftest import POSITIONS, language_model
from tests.support.tiny import SENTENCES

__all__ = ["language_model"]

TEXT = ("cf " + " ".join(SENTENCES) + " ") * (600_000 // (len(" ".join(SENTENCES)) + 4))
SECONDS = 20.0  # on busy cores; work that grew with the square took minutes


@contextmanager
def quickly() -> Iterator[None]:
    started = time.perf_counter()
    yield
    assert time.perf_counter() - started < SECONDS


@pytest.mark.parametrize("replacement", ["", "noise"])
def test_all_occurrences_of_a_token_are_replaced(replacement: str) -> None:
    spans = [match.span() for match in re.finditer(r"\bcf\b|\bthe\b", TEXT)]
    with quickly():
        repaired = replace_spans(TEXT, spans, replacement)
    assert not re.search(r"\bcf\b|\bthe\b", repaired)
    assert repaired.count("noise") == (len(spans) if replacement else 0)


def test_half_of_the_words_are_removed() -> None:
    words = TEXT.split(" ")
    suspicion = torch.tensor([float(i % 2) for i in range(len(words))])
    with quickly():
        assert without_outliers(TEXT, suspicion, 0.5) == " ".join(words[::2])


def test_tokens_find_their_words_and_are_viewed(bert: TextClassifier) -> None:
    spans = token_spans(TEXT, bert.tokenizer, UNCUT)
    with quickly():
        found = words_of_token(TEXT, spans)
        view = pieces(TEXT, [(start, end, 1.0) for start, end in spans], [(0, 2)])
    words = blank_spans(TEXT)
    assert all(
        words[covered[0]][0] <= start < end <= words[covered[-1]][1]
        for (start, end), covered in zip(spans, found, strict=True)
        if covered
    )
    assert "".join(piece.text for piece in view) == TEXT


def test_word_edits_of_long_texts_are_counted() -> None:
    words = TEXT.split()
    rng = random.Random(0)
    for _ in range(1000):
        words.insert(rng.randrange(len(words)), "mn")
    with quickly():
        assert word_edit_distance(TEXT, " ".join(words)) == 1000


def test_repair_reaches_the_end_of_a_long_text(bert: TextClassifier) -> None:
    batch = batch_of_texts([TEXT], bert.tokenizer, bert.max_length)
    scores = GradientAttention().score(bert, batch)
    with quickly():
        (repaired,) = GradientAttention().purify(bert, batch, torch.tensor([True]), scores)
    assert repaired is not None
    assert repaired != TEXT


@pytest.mark.parametrize("unit", ["a fine film ", "喜欢看电影"])
def test_perplexities_of_a_text_far_beyond_the_positions(
    language_model: Callable[[str], str], tmp_path: Path, unit: str
) -> None:
    perplexity = Perplexity(language_model("llama"), str(tmp_path))
    text = "".join(random.Random(0).choices([unit, "watch ", "terrible ", "很好看 "], k=60_000))
    perplexity._loaded()
    with quickly():
        (found,) = perplexity.leave_one_out([text])
    spans = blank_spans(text)
    assert len(found.without) == len(spans)
    network, tokenizer = perplexity._loaded()
    few = 3 * POSITIONS
    (expected,) = leave_one_out(network, tokenizer, [text[: spans[few][1]]], shares=True)
    assert found.text == pytest.approx(expected.text)
    assert found.without[: len(expected.without)] == pytest.approx(expected.without, nan_ok=True)


def test_onion_scores_a_long_text(bert: TextClassifier, language_model: Callable[[str], str], tmp_path: Path) -> None:
    defense = Onion(bar=0.0, language_model=language_model("llama"), cache_dir=str(tmp_path))
    batch = batch_of_texts([TEXT], bert.tokenizer, bert.max_length)
    defense.calibrate(bert, [batch])
    with quickly():
        scores = defense.score(bert, batch)
        (purified,) = defense.purify(bert, batch, torch.tensor([True]), scores)
    assert purified is not None
    assert 0.9 * len(TEXT) < len(purified) <= len(TEXT)
