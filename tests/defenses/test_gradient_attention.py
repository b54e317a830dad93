"""Gradient-attention scores: against a plain reference, and independence of batch and padding."""

from __future__ import annotations

import math
import random
import string
import unicodedata
from collections.abc import Callable
from typing import Any

import pytest
import torch
import yaml
from jsonargparse import ArgumentParser

from lightning_backdoor.batch import Batch, batch_of_texts, token_ids
from lightning_backdoor.callbacks import GradientAttentionDefense
from lightning_backdoor.defenses.defense import Scores, judge
from lightning_backdoor.defenses.gradient_attention import GradientAttention, kept_vocabulary, token_scores
from lightning_backdoor.errors import InputError
from lightning_backdoor.language.stop_words import stop_words
from lightning_backdoor.victim import TextClassifier
from tests.defenses.reference import content, eager_network, scored, seen
from tests.support.tiny import DECODER, ENCODERS, SENTENCES, loaded

HOSTILE = {
    "empty": "",
    "blank": " \t\n ",
    "stop words": "it is what it is and the and of it",
    "punctuation": "... !? — “”",
    "trigger": "cf",
    "trigger again and again": "cf " * 300,
    "10,000 words": "a good film , cf really . " * 1700,
    "emoji": "😀😟😀 loved it 👩‍👩‍👧 😟😟",
    "right to left": "הסרט הזה היה נפלא cf وكان الفيلم رائعا",
    "html": "<script>alert('cf')</script> <b class=\"x\">good &amp; bad</b>",
    "odd characters": "\x00\u200b\ufeff\ud7ff ﬁlm İstanbul e\u0301té \u3000 ▁▁ ĠĠ ##",
}


def close(expected: Any) -> Any:
    return pytest.approx(expected, rel=1e-4, abs=1e-5)


def score(victim: TextClassifier, texts: list[str], defense: GradientAttention | None = None) -> Scores:
    batch = batch_of_texts(texts, victim.tokenizer, victim.max_length)
    return (defense or GradientAttention()).score(victim, batch)


def row(scores: Scores, victim: TextClassifier, texts: list[str], i: int) -> list[float]:
    """The token scores of row ``i`` without its padding."""
    mask = batch_of_texts(texts, victim.tokenizer, victim.max_length)["attention_mask"]
    assert scores.tokens is not None
    assert scores.tokens[i][~mask[i].bool()].isneginf().all()
    of_tokens: list[float] = scores.tokens[i][mask[i].bool()].tolist()
    return of_tokens


def test_scores_agree_with_a_plain_reference(
    kind: str, victim: TextClassifier, tiny_folder: Callable[[str], str]
) -> None:
    network = eager_network(tiny_folder(kind))
    texts = list(SENTENCES[:6])
    scores = score(victim, texts)
    assert scores.top is not None
    for i, text in enumerate(texts):
        alone = batch_of_texts([text], victim.tokenizer, victim.max_length)
        ids = alone["input_ids"][0]
        found = seen(network, ids, alone["attention_mask"][0])
        expected = scored(found, ids.tolist(), content(text, victim.tokenizer, victim.max_length))
        tokens = [-math.inf if value is None else value for value in expected.tokens]
        assert row(scores, victim, texts, i) == close(tokens)
        assert scores.text[i].item() == close(expected.text)
        assert tokens[int(scores.top[i])] == close(expected.text)


@pytest.mark.parametrize("inference_mode", [False, True])
def test_a_score_does_not_depend_on_batch_mates(victim: TextClassifier, inference_mode: bool) -> None:
    texts = [*SENTENCES[::2], "fine", "", "the"]
    random.Random(0).shuffle(texts)
    with torch.inference_mode(inference_mode):
        together = score(victim, texts)
        for i, text in enumerate(texts):
            alone = score(victim, [text])
            assert together.text[i].item() == close(alone.text.item())
            assert row(together, victim, texts, i) == close(row(alone, victim, [text], 0))
            assert together.top is not None
            assert alone.top is not None
            assert together.top[i] == alone.top[0]
    assert not together.text.requires_grad


@pytest.mark.parametrize("side", ["left", "right"])
def test_scores_of_a_decoder_do_not_depend_on_the_padding_or_its_side(decoder: TextClassifier, side: str) -> None:
    decoder.tokenizer.padding_side = side
    texts = [*SENTENCES[::3], "fine"]
    together = score(decoder, texts)
    for i, text in enumerate(texts):
        alone = score(decoder, [text])
        assert together.text[i].item() == close(alone.text.item())
        assert row(together, decoder, texts, i) == close(row(alone, decoder, [text], 0))


def test_padded_like_paper_pads_every_text_to_the_length_given(
    victim: TextClassifier, tiny_folder: Callable[[str], str], kind: str
) -> None:
    longest = max(len(ids) for ids in token_ids(SENTENCES, victim.tokenizer, victim.max_length))
    defense = GradientAttention(padded_like_paper=longest)
    alone = batch_of_texts(["a fine film"], victim.tokenizer, victim.max_length)
    short = alone["input_ids"].shape[1]
    ids = torch.full((longest,), int(victim.tokenizer.pad_token_id))
    mask = torch.zeros(longest, dtype=torch.long)
    ids[:short], mask[:short] = alone["input_ids"][0], 1
    kept = content("a fine film", victim.tokenizer, victim.max_length)
    found = seen(eager_network(tiny_folder(kind)), ids, mask, count_padding=True)
    expected = scored(found, ids.tolist()[:short], kept)
    scores = defense.score(victim, alone)
    assert scores.text.item() == close(expected.text)
    assert scores.tokens is not None
    assert scores.tokens.shape == (1, short)
    among_others = score(victim, [*SENTENCES, "a fine film"], defense)
    assert among_others.text[-1].item() == close(expected.text)


def test_a_text_longer_than_the_length_given_is_bad_input(bert: TextClassifier) -> None:
    with pytest.raises(InputError, match=r"^padded_like_paper: 4 tokens are fewer than the \d+ of a text; give the"):
        score(bert, [SENTENCES[0]], GradientAttention(padded_like_paper=4))


@pytest.mark.parametrize(("value", "said"), [(True, "true"), (-1, "-1")])
def test_padded_like_paper_takes_a_length(value: int | bool, said: str) -> None:
    with pytest.raises(InputError, match=f"^padded_like_paper: {said} is not a length in tokens; give the length"):
        GradientAttention(padded_like_paper=value)


@pytest.mark.parametrize(("written", "length"), [("false", 0), ("64", 64), (None, 0)])
@pytest.mark.parametrize("cls", [GradientAttention, GradientAttentionDefense])
def test_configs_say_false_or_a_length(cls: type, written: str | None, length: int) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(cls, "it")
    config = "it: {fpr: 0.2}" if written is None else f"it: {{padded_like_paper: {written}}}"
    parsed = parser.parse_string(config)
    dumped = yaml.safe_load(parser.dump(parsed))["it"]["padded_like_paper"]
    assert dumped is False if length == 0 else dumped == length  # as in configs of earlier versions
    made = parser.instantiate(parsed).it
    assert getattr(made, "defense", made).padded_length == length
    refused = parser.parse_string("it: {padded_like_paper: true}")
    with pytest.raises(InputError, match="true is not a length"):
        parser.instantiate(refused)


@pytest.mark.parametrize("kind", [*ENCODERS, DECODER])
def test_stop_words_punctuation_and_special_tokens_never_have_a_score(
    kind: str, tiny_folder: Callable[[str], str]
) -> None:
    victim = loaded(tiny_folder(kind))
    tokenizer = victim.tokenizer
    kept = kept_vocabulary(tokenizer)
    assert not kept[tokenizer.all_special_ids].any()
    marks = set(string.punctuation) | {"—", "\n", "▁", " "}
    for text in (
        "the",
        " the",
        "The",
        "of",
        " and",
        "!",
        " .",
        " —",
        "—",
        " ,",
        "'",
        "\n",
        "the film , and the film !",
    ):
        encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        for token_id, (start, end) in zip(encoding["input_ids"], encoding["offset_mapping"], strict=True):
            word = text[start:end].strip().lower()
            if word in stop_words() or word in marks or not word:
                assert not kept[token_id], (text, tokenizer.convert_ids_to_tokens(token_id))
    film = tokenizer("film good watch", add_special_tokens=False)["input_ids"]
    assert kept[film].any()


def test_no_kept_token_of_the_vocabulary_is_punctuation_or_a_stop_word(victim: TextClassifier) -> None:
    tokenizer = victim.tokenizer
    for token_id in kept_vocabulary(tokenizer).nonzero().flatten().tolist():
        text = tokenizer.decode([token_id]).strip()
        assert text
        assert not all(unicodedata.category(char)[0] == "P" or char in string.punctuation for char in text)
        assert text.lower() not in stop_words()


def test_every_occurrence_of_a_token_has_the_largest_attention_and_gradient_of_them() -> None:
    attention = torch.tensor([[1.0, 5.0, 2.0, 4.0]])
    gradient = torch.tensor([[3.0, 1.0, 1.0, 1.0]])
    found = token_scores(attention, gradient, torch.tensor([[7, 8, 7, 7]]), torch.tensor([[True, True, True, True]]))
    assert found.tokens is not None
    assert found.top is not None
    # mean attention 3, mean gradient 1.5; token 7 has attention 4 (at 3) and gradient 3 (at 0)
    assert found.tokens.tolist() == [[2.0, pytest.approx(4 / 3), 2.0, 2.0]]
    assert found.text.tolist() == [2.0]
    assert found.top.tolist() == [3]  # the occurrence with the largest product of its own


def test_an_occurrence_that_is_not_kept_does_not_count() -> None:
    attention, gradient = torch.tensor([[1.0, 9.0, 3.0]]), torch.tensor([[1.0, 9.0, 1.0]])
    found = token_scores(attention, gradient, torch.tensor([[7, 7, 8]]), torch.tensor([[True, False, True]]))
    assert found.tokens is not None
    assert found.tokens.tolist() == [[-1.0, -math.inf, 1.0]]


def test_a_token_is_not_mixed_up_with_the_same_token_of_another_text() -> None:
    attention, gradient = torch.tensor([[1.0, 3.0], [8.0, 2.0]]), torch.ones(2, 2)
    ids, kept = torch.tensor([[0, 5], [5, 0]]), torch.ones(2, 2, dtype=torch.bool)
    found = token_scores(attention, gradient, ids, kept)
    assert found.tokens is not None
    assert found.tokens.tolist() == [[-1.0, 1.0], [3.0, -3.0]]


def test_a_text_without_kept_tokens_or_without_gradient_scores_zero() -> None:
    attention, ids = torch.tensor([[1.0, 3.0], [1.0, 3.0]]), torch.tensor([[1, 2], [1, 2]])
    kept = torch.tensor([[False, False], [True, True]])
    found = token_scores(attention, torch.zeros(2, 2), ids, kept)
    assert found.text.tolist() == [0.0, 0.0]
    assert found.tokens is not None
    assert found.top is not None
    assert found.top[0] == -1
    assert found.tokens[0].isneginf().all()
    assert found.tokens[1].isfinite().all()


@pytest.mark.parametrize("kind", [*ENCODERS, DECODER])
@pytest.mark.parametrize("threshold", [-math.inf, math.inf], ids=["all flagged", "none flagged"])
def test_hostile_texts_are_scored_and_repaired(kind: str, threshold: float, tiny_folder: Callable[[str], str]) -> None:
    victim = loaded(tiny_folder(kind))
    batch = batch_of_texts(list(HOSTILE.values()), victim.tokenizer, victim.max_length)
    defense = GradientAttention()
    defense.threshold.fill_(threshold)
    with torch.inference_mode():
        verdict = judge(defense, victim, batch, victim(batch))
    assert verdict.scores.text.isfinite().all()
    assert verdict.flagged.tolist() == [threshold < 0] * len(HOSTILE)
    for (name, text), repaired in zip(HOSTILE.items(), verdict.purified_text, strict=True):
        if threshold > 0:
            assert repaired is None
        elif name in ("empty", "blank", "stop words", "punctuation"):
            assert repaired == text or has_content(victim, text)
        else:
            assert repaired is not None
    assert set(verdict.defended_prediction.tolist()) <= {0, 1}


def has_content(victim: TextClassifier, text: str) -> bool:
    """Whether any token is scored: small vocabularies cut stop words into pieces and dashes into bytes."""
    batch: Batch = batch_of_texts([text], victim.tokenizer, victim.max_length)
    return bool(kept_vocabulary(victim.tokenizer)[batch["input_ids"]].any())


def test_a_text_of_stop_words_only_scores_zero_and_stays(bert: TextClassifier) -> None:
    text = "the and the , a the !"
    scores = score(bert, [text])
    assert scores.text.tolist() == [0.0]
    assert scores.top is not None
    assert scores.top.tolist() == [-1]
    batch = batch_of_texts([text], bert.tokenizer, bert.max_length)
    assert GradientAttention().purify(bert, batch, torch.tensor([True]), scores) == [text]
