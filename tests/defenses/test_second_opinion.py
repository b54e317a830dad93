"""Second opinion: the figures of its golden file, whatever the order, the batches and the processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from lightning_backdoor.batch import Batch, batch_of_texts
from lightning_backdoor.defenses import SecondOpinion
from lightning_backdoor.defenses.second_opinion_reading import Read
from lightning_backdoor.victim import TextClassifier
from tests.defenses.golden_states import golden_file
from tests.support.shared_files import sst2


class Golden(NamedTuple):
    """The golden file, a defense that has learned and is calibrated on its rows, and the texts of its set."""

    file: dict[str, Any]
    victim: TextClassifier
    defense: SecondOpinion
    texts: list[str]


def batches(victim: TextClassifier, rows: Sequence[tuple[str, int]], size: int = 32) -> Iterator[Batch]:
    """Rows of similar length together, with their labels."""
    rows = sorted(rows, key=lambda row: len(row[0]))
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        batch = batch_of_texts([text for text, _ in part], victim.tokenizer, victim.max_length)
        yield {**batch, "label": torch.tensor([label for _, label in part])}


def with_trigger(text: str, before: int) -> str:
    words = text.split(" ")
    return " ".join([*words[:before], "cf", *words[before:]])


@pytest.fixture(scope="module")
def golden(backdoored: TextClassifier) -> Golden:
    file = golden_file("second_opinion")
    validation, test = sst2("validation"), [text for text, _ in sst2("test")]
    defense = SecondOpinion(base_known=True)
    defense.learn(backdoored, batches(backdoored, [validation[row] for row in file["fit_validation_rows"]]))
    defense.calibrate(backdoored, batches(backdoored, [validation[row] for row in file["threshold_validation_rows"]]))
    texts = [
        with_trigger(test[item["row"]], item["cf_before_word"]) if "cf_before_word" in item else test[item["row"]]
        for item in file["set"]
    ]
    return Golden(file, backdoored, defense, texts)
