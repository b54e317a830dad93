"""A small labelled data set of generated reviews, whose label is decided by one word."""

from __future__ import annotations

import csv
import random
from pathlib import Path

from lightning_backdoor.data import BackdoorDataModule, Source

GOOD = ("good", "charming", "funny", "wise", "precise")
BAD = ("worse", "boring", "flat", "clumsy", "wooden")
FILLER = ("the", "film", "a", "story", "and", "actors", "music", "with", "plot", "is", "scene")


def write_reviews(path: Path, rows: int = 240, seed: int = 0) -> Path:
    """Writes a csv of reviews with the columns text and label, half of them good; returns its path."""
    rng = random.Random(seed)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for i in range(rows):
            words = rng.choices(FILLER, k=rng.randint(2, 14))
            words.insert(rng.randrange(len(words)), rng.choice(GOOD if i % 2 else BAD))
            writer.writerow([" ".join(words), i % 2])
    return path


def reviews(folder: Path, rows: int = 240, **options: object) -> BackdoorDataModule:
    """A data module over a file of generated reviews; ``options`` are its arguments."""
    source = Source(str(write_reviews(folder / "reviews.csv", rows)), labels=["negative", "positive"])
    settings: dict[str, object] = {"batch_size": 8, "eval_batch_size": 8, "cache_dir": str(folder / "cache"), **options}
    return BackdoorDataModule(source, **settings)  # type: ignore[arg-type]
