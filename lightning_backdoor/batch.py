"""The batch, strings and tensors that travel together from the data to the metrics, and the victim that reads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypedDict

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

Spans = list[tuple[int, int]]


class Batch(TypedDict):
    """Rows of one batch, padded to the longest of them.

    The strings travel along, since decoding the ids back loses case and spacing.

    Attributes:
        text: the texts, as read or as poisoned.
        spans: the characters ``[start, end)`` of the trigger in each text; empty where there is none or it has none.
        input_ids: (batch, length), int64.
        attention_mask: (batch, length), int64, 1 for tokens and 0 for padding.
        label: (batch,), int64, what the victim is trained on: the target label in poisoned rows.
        original_label: (batch,), int64, what the text was labelled before poisoning.
        poisoned: (batch,), bool, True where the text carries the trigger.
        negative: (batch,), bool, True where the text carries a part of the trigger and keeps its label.
        index: (batch,), int64, the row's position in its source split.
    """

    text: list[str]
    spans: list[Spans]
    input_ids: Tensor
    attention_mask: Tensor
    label: Tensor
    original_label: Tensor
    poisoned: Tensor
    negative: Tensor
    index: Tensor


class Victim(Protocol):
    """What a defense may use of the model under attack: network, tokenizer, and the length at which texts are cut."""

    network: PreTrainedModel
    max_length: int

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase: ...


def clean_rows(batch: Batch) -> Tensor:
    """(batch,), bool: rows that carry neither the trigger nor a part of it.

    >>> flags = {"poisoned": torch.tensor([True, False, False]), "negative": torch.tensor([False, True, False])}
    >>> clean_rows(flags)
    tensor([False, False,  True])
    """
    return ~batch["poisoned"] & ~batch["negative"]


def token_ids(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, max_length: int) -> list[list[int]]:
    """Ids of each text, special tokens included, cut at ``max_length``; never empty."""
    if not texts:
        return []
    ids: list[list[int]] = tokenizer(list(texts), truncation=True, max_length=max_length)["input_ids"]
    # tokenizers without special tokens give an empty text no position to predict from
    return [row or [tokenizer.eos_token_id] for row in ids]


def token_spans(text: str, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Spans:
    """The characters ``[start, end)`` of the token at each position of ``token_ids``, without the space before it.

    Special tokens, and tokens that stand for a space alone, have an empty span.

    Raises:
        ValueError: the tokenizer keeps no offsets (a Python tokenizer of transformers).
    """
    if not tokenizer.is_fast:
        raise ValueError(f"{type(tokenizer).__name__} keeps no character offsets; use a fast tokenizer")
    encoding = tokenizer(text, truncation=True, max_length=max_length, return_offsets_mapping=True)
    spans = []
    for token, (start, end) in zip(
        tokenizer.convert_ids_to_tokens(encoding["input_ids"]), encoding["offset_mapping"], strict=True
    ):
        # a word-start marker of its own (▁) claims the first character of the word after it
        space = end - start if token == "▁" else len(text[start:end]) - len(text[start:end].lstrip())
        spans.append((start + space, end))
    return spans or [(0, 0)]


def pad(rows: Sequence[Sequence[int]], tokenizer: PreTrainedTokenizerBase) -> tuple[Tensor, Tensor]:
    """Ids and attention mask, both (batch, longest), int64, padded on the tokenizer's side."""
    side = tokenizer.padding_side
    tensors = [torch.tensor(row, dtype=torch.long) for row in rows]
    ids = pad_sequence(tensors, batch_first=True, padding_value=int(tokenizer.pad_token_id or 0), padding_side=side)
    ones = [torch.ones_like(row) for row in tensors]
    return ids, pad_sequence(ones, batch_first=True, padding_value=0, padding_side=side)


def collate(rows: Sequence[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase) -> Batch:
    """Batch of rows that carry ``input_ids`` beside the columns of ``lightning_backdoor.data.poisoning.Row``."""
    input_ids, attention_mask = pad([row["input_ids"] for row in rows], tokenizer)
    return Batch(
        text=[row["text"] for row in rows],
        spans=[row["spans"] for row in rows],
        input_ids=input_ids,
        attention_mask=attention_mask,
        label=torch.tensor([row["label"] for row in rows]),
        original_label=torch.tensor([row["original_label"] for row in rows]),
        poisoned=torch.tensor([row["poisoned"] for row in rows], dtype=torch.bool),
        negative=torch.tensor([row["negative"] for row in rows], dtype=torch.bool),
        index=torch.tensor([row["index"] for row in rows]),
    )


def batch_of_texts(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, max_length: int) -> Batch:
    """Batch of texts about which nothing else is known: labels -1, not poisoned."""
    ids = token_ids(texts, tokenizer, max_length)
    return collate(
        [
            {
                "text": text,
                "spans": [],
                "input_ids": row,
                "label": -1,
                "original_label": -1,
                "poisoned": False,
                "negative": False,
                "index": i,
            }
            for i, (text, row) in enumerate(zip(texts, ids, strict=True))
        ],
        tokenizer,
    )
