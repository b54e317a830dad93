"""The batch that the data module passes to victims, defenses and metrics, and functions that make batches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import compress
from typing import TYPE_CHECKING, Any, Protocol, TypedDict, cast

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lightning_backdoor.errors import InputError

if TYPE_CHECKING:  # importing transformers takes seconds
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

#: ranges ``[start, end)`` of characters of a text, such as the characters of its trigger.
Spans = list[tuple[int, int]]


class Batch(TypedDict):
    """The rows of one batch: texts, token ids padded to the longest row, labels and poison flags.

    The texts are part of the batch because decoding the ids would lose case and spacing.

    Attributes:
        text: the texts, as read or as poisoned.
        spans: the characters ``[start, end)`` of the trigger in each text; empty in clean rows, and where the trigger
            is spread over the whole text, as in paraphrases.
        input_ids: (batch, length), int64.
        attention_mask: (batch, length), int64, 1 for tokens and 0 for padding.
        label: (batch,), int64, the label that the victim is trained on: the target label in poisoned rows.
        original_label: (batch,), int64, the label of the text before poisoning.
        poisoned: (batch,), bool, True where the text carries the trigger.
        negative: (batch,), bool, True where the text carries a part of the trigger and keeps its label.
        index: (batch,), int64, the row's position in its source split; rows that ``rating_cut`` leaves out are not
            counted.
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
    """The model under attack: the interface that defenses may use.

    Attributes:
        network: the Hugging Face classifier.
        max_length: tokens at which texts are cut, special tokens included.
        tokenizer: the network's tokenizer.
    """

    network: PreTrainedModel
    max_length: int

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase: ...


def checked_texts(texts: str | Iterable[str]) -> list[str]:
    """A text, or several, as a list.

    Raises:
        InputError: something is not a text, or not one that can be written as UTF-8.

    >>> checked_texts("a film"), checked_texts(("a", "b"))
    (['a film'], ['a', 'b'])
    """
    if not isinstance(texts, str | Iterable) or isinstance(texts, bytes | Mapping):
        raise InputError("texts", f"a {type(texts).__name__} is not a text", "give a string, or several in a list")
    checked = [texts] if isinstance(texts, str) else list(texts)
    for text in checked:
        if not isinstance(text, str):
            raise InputError("texts", f"a {type(text).__name__} is not a text", "give strings")
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise InputError("texts", f"{text[:100]!r} contains half of a character", "correct it")
    return checked


def clean_rows(batch: Batch) -> Tensor:
    """Marks the rows that carry neither the trigger nor a part of it; (batch,), bool.

    >>> flags = {"poisoned": torch.tensor([True, False, False]), "negative": torch.tensor([False, True, False])}
    >>> clean_rows(flags)
    tensor([False, False,  True])
    """
    return ~batch["poisoned"] & ~batch["negative"]


def token_ids(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, max_length: int) -> list[list[int]]:
    """The token ids of each text, special tokens included, cut at ``max_length``; at least one id per text."""
    if not texts:
        return []
    ids: list[list[int]] = tokenizer(list(texts), truncation=True, max_length=max_length)["input_ids"]
    # without special tokens an empty text has no token at all, which networks cannot process
    return [row or [tokenizer.eos_token_id] for row in ids]


def token_spans(text: str, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Spans:
    """The characters ``[start, end)`` that each token of :func:`token_ids` covers, without the space before it.

    Special tokens, and tokens that stand for a space alone, have an empty span.

    Raises:
        ValueError: the tokenizer is one of transformers' slow ones, which do not record character offsets.
    """
    return ids_and_spans(text, tokenizer, max_length)[1]


def ids_and_spans(text: str, tokenizer: PreTrainedTokenizerBase, max_length: int) -> tuple[list[int], Spans]:
    """The :func:`token_ids` of a text, and its :func:`token_spans`, by one tokenisation."""
    if not tokenizer.is_fast:
        raise ValueError(f"{type(tokenizer).__name__} does not record character offsets; use a fast tokenizer")
    encoding = tokenizer(text, truncation=True, max_length=max_length, return_offsets_mapping=True)
    ids: list[int] = encoding["input_ids"]
    spans = []
    for token, (start, end) in zip(tokenizer.convert_ids_to_tokens(ids), encoding["offset_mapping"], strict=True):
        # a marker of word starts that is a token by itself (▁) covers the first character of the word after it
        space = end - start if token == "▁" else len(text[start:end]) - len(text[start:end].lstrip())
        spans.append((start + space, end))
    return (ids, spans) if ids else ([tokenizer.eos_token_id], [(0, 0)])


def pad(rows: Sequence[Sequence[int]], tokenizer: PreTrainedTokenizerBase) -> tuple[Tensor, Tensor]:
    """Pads rows of token ids, on the tokenizer's padding side.

    Returns:
        Ids and attention mask, both (batch, longest), int64.
    """
    side = tokenizer.padding_side
    tensors = [torch.tensor(row, dtype=torch.long) for row in rows]
    ids = pad_sequence(tensors, batch_first=True, padding_value=int(tokenizer.pad_token_id or 0), padding_side=side)
    ones = [torch.ones_like(row) for row in tensors]
    return ids, pad_sequence(ones, batch_first=True, padding_value=0, padding_side=side)


def collate(rows: Sequence[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase) -> Batch:
    """Makes a batch of rows with ``input_ids`` and the columns of ``lightning_backdoor.data.rows.Row``."""
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
    """Makes a batch of unlabelled texts: labels are -1, and no row is marked as poisoned or negative."""
    ids_by_text = token_ids(texts, tokenizer, max_length)
    return collate(
        [
            {
                "text": text,
                "spans": [],
                "input_ids": ids,
                "label": -1,
                "original_label": -1,
                "poisoned": False,
                "negative": False,
                "index": index,
            }
            for index, (text, ids) in enumerate(zip(texts, ids_by_text, strict=True))
        ],
        tokenizer,
    )


def unlabelled(batch: Batch) -> Batch:
    """A batch as a stream of texts is seen: without labels, poison flags, trigger spans and row indices.

    Labels and indices are -1, flags False and spans empty; texts and tokens stay.
    """
    unknown, no = torch.full_like(batch["label"], -1), torch.zeros_like(batch["poisoned"])
    return {
        **batch,
        "spans": [[] for _ in batch["text"]],
        "label": unknown,
        "original_label": unknown.clone(),
        "poisoned": no,
        "negative": no.clone(),
        "index": unknown.clone(),
    }


def with_texts(
    batch: Batch, texts: list[str], spans: list[Spans], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> Batch:
    """The rows of a batch with other texts, tokenised anew, on the batch's device."""
    ids, mask = pad(token_ids(texts, tokenizer, max_length), tokenizer)
    device = batch["input_ids"].device
    return {**batch, "text": texts, "spans": spans, "input_ids": ids.to(device), "attention_mask": mask.to(device)}


def taken(batch: Batch, wanted: Tensor) -> Batch:
    """The rows of a batch for which ``wanted``, (batch,), bool, is True; their padding stays."""
    rows: dict[str, Any] = dict(batch)
    columns = {
        name: list(compress(column, wanted.tolist())) if isinstance(column, list) else column[wanted]
        for name, column in rows.items()
    }
    return cast(Batch, columns)
