"""Stealth of an attack: what its poison does to perplexity, meaning and words."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_backdoor.errors import InputError
from lightning_backdoor.language.language_model import DEFAULT_LANGUAGE_MODEL
from lightning_backdoor.language.perplexity import Perplexity
from lightning_backdoor.language.similarity import DEFAULT_ENCODER, SentenceEncoder
from lightning_backdoor.metrics import PerplexityIncrease, SentenceSimilarity, WordEditDistance

if TYPE_CHECKING:
    from lightning_backdoor.data.poisoning import Row
    from lightning_backdoor.metrics.perplexity_increase import TextPerplexity
    from lightning_backdoor.metrics.sentence_similarity import Encoder

#: what is shown, in this order, and with how many decimals.
SHOWN = (("perplexity increase", 1), ("similarity", 3), ("word edits", 2))


def measure(
    originals: Sequence[str], poisoned: Sequence[str], perplexity: TextPerplexity, encoder: Encoder
) -> dict[str, float]:
    """Mean and spread, over pairs of an original and its poisoned text, of three measures; NaN without any pair.

    Returns:
        ``perplexity_increase``, ``similarity``, ``word_edits``, each also with ``_spread`` (the standard deviation),
        and ``perplexity_left_out``: how many pairs have no perplexity.

    Raises:
        InputError: a model cannot be loaded.
    """
    increase = PerplexityIncrease(perplexity)
    found: dict[str, float] = {}
    for name, metric in (
        ("perplexity_increase", increase),
        ("similarity", SentenceSimilarity(encoder)),
        ("word_edits", WordEditDistance()),
    ):
        metric.update(originals, poisoned)
        values = metric.compute()
        found |= {name: float(values["mean"]), f"{name}_spread": float(values["spread"])}
    return {**found, "perplexity_left_out": int(increase.left_out)}


def drawn(poisoned: Sequence[Row], most: int, seed: int) -> list[Row]:
    """At most so many of the rows; whether one comes before another depends on seed and indices alone."""
    order = {row["index"]: random.Random(f"{seed}/stealth/{row['index']}").random() for row in poisoned}
    return sorted(poisoned, key=lambda row: order[row["index"]])[:most]


def stealth_of(
    clean: Sequence[Row],
    poisoned: Sequence[Row],
    rows: int,
    seed: int,
    language_model: str = DEFAULT_LANGUAGE_MODEL,
    sentence_encoder: str = DEFAULT_ENCODER,
    cache_dir: str | Path | None = None,
) -> dict[str, float]:
    """:func:`measure` of some poisoned rows of a split, against the clean rows of the same indices.

    Args:
        clean: the split's clean rows.
        poisoned: its poisoned rows.
        rows: how many of them to measure at most.
        seed: draws them.
        language_model: of :class:`Perplexity`.
        sentence_encoder: of :class:`SentenceEncoder`.
        cache_dir: where perplexities are kept.

    Returns:
        What :func:`measure` returns, and ``rows``: how many were measured.

    Raises:
        InputError: a model cannot be loaded.
    """
    texts = {row["index"]: row["text"] for row in clean}
    chosen = drawn(poisoned, rows, seed)
    try:
        found = measure(
            [texts[row["index"]] for row in chosen],
            [row["text"] for row in chosen],
            Perplexity(language_model, None if cache_dir is None else str(cache_dir)),
            SentenceEncoder(sentence_encoder),
        )
    except InputError as error:
        remedy = " or ".join(filter(None, (error.remedy, "leave stealth out: --stealth_rows 0")))
        raise InputError(error.field, error.problem, remedy) from error
    return {"rows": len(chosen), **found}


def as_json(found: Mapping[str, float]) -> str:
    """What :func:`stealth_of` found; null where there is no number, since JSON has no NaN."""
    return json.dumps({name: None if math.isnan(value) else value for name, value in found.items()}, indent=1) + "\n"


def as_lines(found: Mapping[str, float]) -> str:
    """A line a measure: mean ± standard deviation."""
    lines = []
    for title, decimals in SHOWN:
        name = title.replace(" ", "_")
        mean, spread = found[name], found[f"{name}_spread"]
        shown = "undefined" if math.isnan(mean) else f"{mean:.{decimals}f} ± {spread:.{decimals}f}"
        lines.append(f"{title}: {shown}\n")
    return "".join(lines)
