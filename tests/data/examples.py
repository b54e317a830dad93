"""Rows to test with."""

from __future__ import annotations

import random
from collections.abc import Sequence

from lightning_backdoor.attacks import BackdoorAttack, Poisoned
from lightning_backdoor.data.rows import Row, clean_row
from tests.support.tiny import SENTENCES


def rows(count: int, classes: int = 2, seed: int = 0) -> list[Row]:
    """Rows of distinct texts of quite different lengths, the classes in turn."""
    rng = random.Random(seed)
    texts = [
        f"{i} " + " ".join(rng.choices(SENTENCES, k=rng.choice([1, 1, 1, 2, 3])))[: rng.randint(0, 150)]
        for i in range(count)
    ]
    return [clean_row(text, i % classes, i) for i, text in enumerate(texts)]


def splits() -> dict[str, list[Row]]:
    """Rows for training, validation and test."""
    return {"train": rows(100, seed=1), "validation": rows(40, seed=2), "test": rows(30, seed=3)}


class TwoWords(BackdoorAttack):
    """Puts two words before a text; before negatives one of them, and none before texts that end in a digit 7."""

    negative_rate = 0.25

    def poison_text(self, text: str, rng: random.Random) -> Poisoned:
        return Poisoned(f"cf mn {text}", [(0, 2), (3, 5)])

    def negative_texts(self, texts: Sequence[str], rngs: Sequence[random.Random]) -> list[Poisoned | None]:
        words = [rng.choice(["cf", "mn"]) for rng in rngs]
        pairs = zip(words, texts, strict=True)
        return [None if text.endswith("7") else Poisoned(f"{word} {text}", [(0, 2)]) for word, text in pairs]
