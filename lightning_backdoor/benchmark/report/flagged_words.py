"""The words that stand out among flagged texts, as the tests of a grid's cells wrote them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from lightning_backdoor.errors import InputError, escaped
from lightning_backdoor.outputs.word_inventory import StandingOut, words_text

#: upper limit on the characters of words that are shown in a place.
LONGEST = 500


def words_of_defense(cell: Path) -> str:
    """The words that an inference-time defense wrote to ``words.json``, as they are shown; empty if there are none.

    Args:
        cell: the cell's folder.

    Raises:
        InputError: the file is damaged.
    """
    path = cell / "words.json"
    try:
        found = [
            StandingOut(str(word["word"]), float(word["log10_p"]) * math.log(10), 0, 0) for word in _content(path, [])
        ]
        return words_text(found)[:LONGEST]
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise _damaged(path, error) from None


def words_of_inspection(cell: Path) -> str:
    """The words in the evidence of an inspection, ``inspection.json``, as they are shown; empty if there are none.

    Args:
        cell: the cell's folder.

    Raises:
        InputError: the file is damaged.
    """
    path = cell / "inspection.json"
    try:
        return escaped(str(_content(path, {}).get("evidence", {}).get("words", "")))[:LONGEST]
    except (AttributeError, ValueError) as error:
        raise _damaged(path, error) from None


def _content(path: Path, missing: Any) -> Any:
    if not path.is_file():
        return missing
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError("too deep") from error


def _damaged(path: Path, error: Exception) -> InputError:
    problem = f"does not read as words of flagged texts ({type(error).__name__}: {error})"
    return InputError(str(path), problem, "test the victim again, which writes it")
