"""Character noise: only the flagged token changes, and how."""

from __future__ import annotations

import random
import re
import string
from collections.abc import Callable

import pytest
import torch

from lightning_backdoor.batch import Batch, batch_of_texts, token_spans
from lightning_backdoor.defenses.character_noise import noisy, replace_spans
from lightning_backdoor.defenses.defense import Scores
from lightning_backdoor.defenses.gradient_attention import GradientAttention, kept_vocabulary
from lightning_backdoor.victim import TextClassifier
from tests.support.tiny import DECODER, ENCODERS, SENTENCES, loaded


def purified(victim: TextClassifier, batch: Batch, top: list[int], seed: int = 0) -> list[str | None]:
    """The texts of a batch, each repaired at the given position."""
    rows = len(batch["text"])
    scores = Scores(torch.zeros(rows), top=torch.tensor(top))
    return GradientAttention(seed=seed).purify(victim, batch, torch.ones(rows, dtype=torch.bool), scores)


def content_positions(victim: TextClassifier, batch: Batch, row: int = 0) -> list[int]:
    kept = kept_vocabulary(victim.tokenizer)[batch["input_ids"][row]] & batch["attention_mask"][row].bool()
    positions: list[int] = kept.nonzero().flatten().tolist()
    return positions


@pytest.mark.parametrize("kind", [*ENCODERS, DECODER])
def test_only_the_characters_of_the_token_change_and_word_starts_stay(
    kind: str, tiny_folder: Callable[[str], str]
) -> None:
    victim = loaded(tiny_folder(kind))
    lengths = set()
    for text in (*SENTENCES[:6], SENTENCES[13], "  Boring ,\tboring  BORING —boring!\n"):
        batch = batch_of_texts([text], victim.tokenizer, victim.max_length)
        ids = batch["input_ids"][0].tolist()
        spans = token_spans(text, victim.tokenizer, victim.max_length)
        for top in content_positions(victim, batch):
            (repaired,) = purified(victim, batch, [top])
            assert repaired is not None
            start, end = spans[top]
            occurrences = [span for span, token in zip(spans, ids, strict=True) if token == ids[top]]
            starts, ends = zip(*occurrences, strict=True)
            outside = [text[a:b] for a, b in zip((0, *ends), (*starts, None), strict=True)]
            lengths.add(len(text[start:end]))
            if end - start <= 2:
                # dropped, with at most one space a piece
                assert len(text) - 2 * (end - start) * len(occurrences) <= len(repaired) < len(text)
                assert "".join(repaired.split()) == "".join("".join(outside).split())
                continue
            noise = f"(?P<noise>.*?){re.escape(outside[1])}"
            pattern = noise + "".join(f"(?P=noise){re.escape(part)}" for part in outside[2:])
            found = re.fullmatch(re.escape(outside[0]) + pattern, repaired, re.DOTALL)
            assert found, (text[start:end], repaired)
            assert found["noise"].lower() != text[start:end].lower()
            assert 0 <= len(found["noise"]) - (end - start) <= 2
            assert re.sub(r"\S+", "w", repaired) == re.sub(r"\S+", "w", text)  # same words, same spaces between
    assert min(lengths) <= 2 < max(lengths)


def test_continuations_and_word_starts_stay_what_they_are(bert: TextClassifier) -> None:
    vocabulary = bert.tokenizer.get_vocab()
    first = "film"
    assert first in vocabulary
    second = next(token for token in sorted(vocabulary) if token.startswith("##") and len(token) >= len("##ing"))
    inside = second.removeprefix("##")
    batch = batch_of_texts([f"a {first}{inside} movie"], bert.tokenizer, bert.max_length)
    tokens = bert.tokenizer.convert_ids_to_tokens(batch["input_ids"][0].tolist())
    (repaired,) = purified(bert, batch, [tokens.index(second)])
    assert re.fullmatch(f"a {first}[a-z]+ movie", repaired or "")
    (repaired,) = purified(bert, batch, [tokens.index(first)])
    assert re.fullmatch(f"a [a-z]+{inside} movie", repaired or "")


def test_the_same_text_gets_the_same_noise_whatever_its_batch_mates_and_the_side_of_the_padding(
    victim: TextClassifier,
) -> None:
    texts = [SENTENCES[3], "fine", SENTENCES[14], "watching"]
    alone = []
    for text in texts:
        batch = batch_of_texts([text], victim.tokenizer, victim.max_length)
        alone += purified(victim, batch, [content_positions(victim, batch)[-1]])
    order = [2, 0, 3, 1]
    for side in ("right", "left"):
        victim.tokenizer.padding_side = side
        batch = batch_of_texts([texts[i] for i in order], victim.tokenizer, victim.max_length)
        top = [content_positions(victim, batch, row)[-1] for row in range(len(order))]
        assert purified(victim, batch, top) == [alone[i] for i in order]
    assert alone != texts


def test_the_noise_depends_on_the_seed(bert: TextClassifier) -> None:
    batch = batch_of_texts(["watching the film"], bert.tokenizer, bert.max_length)
    found = {purified(bert, batch, [1], seed)[0] for seed in range(20)}
    assert len(found) > 5
    assert purified(bert, batch, [1], seed=3) == purified(bert, batch, [1], seed=3)


def test_the_noise_depends_on_the_text(bert: TextClassifier) -> None:
    batch = batch_of_texts([f"watching {sentence}" for sentence in SENTENCES], bert.tokenizer, bert.max_length)
    found = purified(bert, batch, [1] * len(SENTENCES))
    assert len({(text or "").split()[0] for text in found}) > 5


def test_rows_that_are_not_flagged_are_left_alone(victim: TextClassifier) -> None:
    batch = batch_of_texts(list(SENTENCES[:3]), victim.tokenizer, victim.max_length)
    defense = GradientAttention()
    found = defense.purify(victim, batch, torch.tensor([False, True, False]), defense.score(victim, batch))
    assert [text is None for text in found] == [True, False, True]


@pytest.mark.parametrize("kind", [*ENCODERS, DECODER])
def test_a_dropped_trigger_does_not_come_back_from_beyond_the_cut(kind: str, tiny_folder: Callable[[str], str]) -> None:
    victim = loaded(tiny_folder(kind))
    text = "watch it , " + "film " * 100
    batch = batch_of_texts([text], victim.tokenizer, victim.max_length)
    assert batch["input_ids"].shape[1] == victim.max_length
    ids = batch["input_ids"][0].tolist()
    top = next(j for j in content_positions(victim, batch) if ids.count(ids[j]) > 10)
    (repaired,) = purified(victim, batch, [top])
    assert repaired is not None
    assert ids[top] not in batch_of_texts([repaired], victim.tokenizer, 10_000)["input_ids"][0].tolist()


@pytest.mark.parametrize("kind", ["roberta", DECODER])
def test_a_character_of_several_byte_tokens_is_replaced_once(kind: str, tiny_folder: Callable[[str], str]) -> None:
    victim = loaded(tiny_folder(kind))
    text = "so 😟 sad 😟😀 film"  # the bytes of 😟 are f0 9f 98 9f
    batch = batch_of_texts([text], victim.tokenizer, victim.max_length)
    spans = token_spans(text, victim.tokenizer, victim.max_length)
    ids = batch["input_ids"][0].tolist()
    twice = [j for j, span in enumerate(spans) if list(zip(spans, ids, strict=True)).count((span, ids[j])) == 2]
    assert twice
    assert purified(victim, batch, twice[:1]) == ["so sad film"]


def test_spaces_of_dropped_words() -> None:
    assert replace_spans("cf a film", [(0, 2)], "") == "a film"
    assert replace_spans("a film cf", [(7, 9)], "") == "a film"
    assert replace_spans("a cf cf film", [(2, 4), (5, 7)], "") == "a film"
    assert replace_spans("cf cf", [(0, 2), (3, 5)], "") == ""
    assert replace_spans("films", [(4, 5)], "") == "film"
    assert replace_spans("a (cf) film", [(3, 5)], "") == "a () film"
    assert replace_spans("a  film", [(2, 2)], "") == "a  film"


@pytest.mark.parametrize("word", ["film", "Öl!", "😀😀😀", "שלום", "abc"])
def test_noise_inserts_one_or_two_letters_or_replaces_one_character_by_them(word: str) -> None:
    kinds = set()
    for seed in range(300):
        result = noisy(word, random.Random(seed))
        assert result.lower() != word.lower()
        ways = {
            (removed, added)
            for removed in (0, 1)
            for added in (1, 2)
            for position in range(len(word))
            if len(result) == len(word) + added - removed
            and result[:position] == word[:position]
            and result[position + added :] == word[position + removed :]
            and set(result[position : position + added]) <= set(string.ascii_lowercase)
        }
        assert ways
        kinds |= ways
    assert kinds == {(0, 1), (0, 2), (1, 1), (1, 2)}


@pytest.mark.parametrize("word", ["", "a", "cf", "😀"])
def test_words_of_at_most_two_characters_are_dropped(word: str) -> None:
    assert noisy(word, random.Random(0)) == ""
