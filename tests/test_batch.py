"""Token ids, character spans and padding."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from lightning_backdoor.batch import batch_of_texts, collate, pad, token_ids, token_spans
from lightning_backdoor.victim import TextClassifier
from tests.support.tiny import DECODER, ENCODERS, SENTENCES, loaded

TEXT = "  The film\tnever ends — Watching it, I  cried "


@pytest.mark.parametrize("kind", [*ENCODERS, DECODER])
def test_spans_are_the_characters_of_each_token_without_the_space_before_it(
    kind: str, tiny_folder: Callable[[str], str]
) -> None:
    victim = loaded(tiny_folder(kind))
    spans = token_spans(TEXT, victim.tokenizer, victim.max_length)
    (ids,) = token_ids([TEXT], victim.tokenizer, victim.max_length)
    assert len(spans) == len(ids)
    covered = {position for start, end in spans for position in range(start, end)}
    assert covered == {position for position, char in enumerate(TEXT) if not char.isspace()}
    for token_id, (start, end) in zip(ids, spans, strict=True):
        token = victim.tokenizer.convert_ids_to_tokens(token_id)
        piece = victim.tokenizer.decode([token_id]).strip().removeprefix("##")
        if token_id in victim.tokenizer.all_special_ids:
            assert token == victim.tokenizer.unk_token or start == end
        else:
            assert TEXT[start:end].lower() == piece.lower()


def test_spans_of_a_text_that_is_cut_are_as_many_as_its_ids(victim: TextClassifier) -> None:
    text = " ".join(SENTENCES)
    (ids,) = token_ids([text], victim.tokenizer, 12)
    assert len(ids) == 12
    assert token_spans(text, victim.tokenizer, 12)[:-1] == token_spans(text, victim.tokenizer, 12_000)[:11]
    assert len(token_spans(text, victim.tokenizer, 12)) == 12


@pytest.mark.parametrize("kind", [*ENCODERS, DECODER])
def test_an_empty_text_has_a_position_to_predict_from(kind: str, tiny_folder: Callable[[str], str]) -> None:
    victim = loaded(tiny_folder(kind))
    (ids,) = token_ids([""], victim.tokenizer, victim.max_length)
    assert ids
    assert token_spans("", victim.tokenizer, victim.max_length) == [(0, 0)] * len(ids)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_on_the_side_of_the_tokenizer_and_masked(bert: TextClassifier, side: str) -> None:
    bert.tokenizer.padding_side = side
    ids, mask = pad([[7, 8, 9], [5]], bert.tokenizer)
    padding = int(bert.tokenizer.pad_token_id)
    assert ids.tolist() == [[7, 8, 9], [5, padding, padding] if side == "right" else [padding, padding, 5]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0] if side == "right" else [0, 0, 1]]
    assert ids.dtype == mask.dtype == torch.int64


def test_a_batch_of_bare_texts_is_unlabelled_not_poisoned_and_in_order(bert: TextClassifier) -> None:
    batch = batch_of_texts(SENTENCES[:3], bert.tokenizer, bert.max_length)
    assert batch["text"] == list(SENTENCES[:3])
    assert batch["label"].tolist() == batch["original_label"].tolist() == [-1, -1, -1]
    assert batch["poisoned"].tolist() == [False, False, False]
    assert batch["index"].tolist() == [0, 1, 2]
    assert batch["attention_mask"].sum(dim=1).tolist() == [
        len(ids) for ids in token_ids(SENTENCES[:3], bert.tokenizer, bert.max_length)
    ]


def test_collated_rows_keep_all_their_columns(bert: TextClassifier) -> None:
    row = {"text": "cf x", "spans": [(0, 2)], "input_ids": [2, 3], "label": 1, "original_label": 0}
    batch = collate([{**row, "poisoned": True, "negative": False, "index": 17}], bert.tokenizer)
    assert (batch["text"], batch["spans"]) == (["cf x"], [[(0, 2)]])
    assert [batch[key].tolist() for key in ("label", "original_label", "poisoned", "index")] == [[1], [0], [True], [17]]
