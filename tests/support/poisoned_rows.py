"""The poisoned training rows on which golden files of data defenses were made."""

from __future__ import annotations

from typing import Any

from lightning_backdoor.data.cleaning import LabelledText
from tests.support.shared_files import sst2


def poisoned_rows(settings: dict[str, Any]) -> list[LabelledText]:
    """SST-2 training rows, some with a word inserted and another label, as the entries of a golden file say."""
    first, last = settings["train_rows"]
    rows = [LabelledText(*row) for row in sst2("train", last + 1)[first:]]
    for i in settings["poisoned_rows"]:
        words = rows[i].text.split(" ")
        words.insert(settings["before_word"], settings["inserted"])
        rows[i] = LabelledText(" ".join(words), settings["label_of_poisoned"])
    return rows
