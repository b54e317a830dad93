"""Texts of the golden files of attacks: words put into rows of SST-2 at fixed places."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch

from lightning_backdoor.batch import Batch, batch_of_texts
from lightning_backdoor.victim import TextClassifier
from tests.support.shared_files import shared_path, sst2


def read_golden(name: str) -> dict[str, Any]:
    """The figures of a golden file; skips the test where it is absent."""
    figures: dict[str, Any] = json.loads(shared_path(f"golden/{name}.json").read_text())
    return figures


def edited(text: str, edits: Sequence[tuple[str, int]]) -> str:
    """A text with words put in, one after the other, each before the word of a number."""
    words = text.split(" ")
    for word, place in edits:
        words.insert(place, word)
    return " ".join(words)


def training_batch(victim: TextClassifier, rows: Sequence[tuple[int, Sequence[tuple[str, int]], int | None]]) -> Batch:
    """A batch of training rows of SST-2.

    Args:
        victim: the victim that reads it.
        rows: number of the row, edits of its text, and its label; None for the true one.
    """
    source = sst2("train", 1 + max(number for number, _, _ in rows))
    texts = [edited(source[number][0], edits) for number, edits, _ in rows]
    batch = batch_of_texts(texts, victim.tokenizer, victim.max_length)
    labels = [source[number][1] if label is None else label for number, _, label in rows]
    return {**batch, "label": torch.tensor(labels)}
