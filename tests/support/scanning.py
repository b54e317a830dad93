"""Scans of a tiny model: trusted texts, texts to scan, and the arguments of a scan of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.tiny import SENTENCES
from tests.support.workspace import labelled_texts

CLEAN = [text for text, _ in labelled_texts(60, seed=1)]
TEXTS = [text for text, _ in labelled_texts(70, seed=2)] + list(SENTENCES)
LABELS = ("LABEL_0", "LABEL_1")  # the names of a model that has none of its own
FPR = 0.3  # so that some texts are flagged

Lines = list[dict[str, Any]]


@pytest.fixture(scope="module")
def model(workspace: Path) -> str:
    return str(workspace / "model")


@pytest.fixture
def scan(tmp_path: Path, model: str) -> Callable[..., list[str]]:
    """Writes files of ``CLEAN`` and ``TEXTS``; returns the arguments of a scan of them, some options changed."""
    (tmp_path / "clean.txt").write_text("\n".join(CLEAN), encoding="utf-8")
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS), encoding="utf-8")

    def options(*more: str, **changed: object) -> list[str]:
        chosen: dict[str, object] = {
            "model": model,
            "calibration": tmp_path / "clean.txt",
            "input": tmp_path / "texts.txt",
            "output": tmp_path / "found.jsonl",
            "fpr": FPR,
            **changed,
        }
        flags = [f"--{name.replace('_', '-')}" for name in chosen]
        pairs = zip(flags, chosen.values(), strict=True)
        return [
            "scan",
            *(str(part) for flag, value in pairs for part in ([flag] if value is True else [flag, value])),
            *more,
        ]

    return options


def lines(path: Path) -> Lines:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
