"""Files of the folder ``shared`` beside the repository: real data, a victim, published figures; not in the project."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[3] / "shared"


def shared_path(name: str) -> Path:
    """A file or folder of ``shared``; skips the test where it is absent."""
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"needs shared/{name} beside the repository")
    return path


def sst2(split: str, rows: int | None = None) -> list[tuple[str, int]]:
    """The first ``rows`` rows (text, label) of an SST-2 split, by default all; skips the test where it is absent."""
    with shared_path(f"data/sst2/{split}.tsv").open(encoding="utf-8", newline="") as file:
        lines = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        return [(line["text"], int(line["label"])) for line in lines][:rows]
