"""The stealth of an attack: how poisoned texts differ from the originals in perplexity, meaning and words."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lightning_backdoor.data.rows import Row, Rows
from lightning_backdoor.errors import InputError
from lightning_backdoor.language.language_model import DEFAULT_LANGUAGE_MODEL
from lightning_backdoor.language.perplexity import Perplexity
from lightning_backdoor.language.public_encoder import DEFAULT_ENCODER
from lightning_backdoor.language.similarity import SentenceEncoder
from lightning_backdoor.metrics import PerplexityIncrease, SentenceSimilarity, WordEditDistance

if TYPE_CHECKING:
    from lightning_backdoor.metrics.perplexity_increase import TextPerplexity
    from lightning_backdoor.metrics.sentence_similarity import Encoder

#: the measures in the order in which they are printed, each with its number of decimals.
STEALTH_MEASURES = (("perplexity increase", 1), ("similarity", 3), ("word edits", 2))


def measure(
    originals: Sequence[str], poisoned: Sequence[str], perplexity: TextPerplexity, encoder: Encoder
) -> dict[str, float]:
    """Mean and standard deviation of three measures over pairs of an original text and its poisoned text.

    Returns:
        ``perplexity_increase``, ``similarity`` and ``word_edits``, and the standard deviation of each under the same
        name with ``_spread``; NaN without any pair. ``perplexity_left_out`` is the number of pairs without perplexity.

    Raises:
        InputError: a model cannot be loaded.
    """
    increase = PerplexityIncrease(perplexity)
    stealth: dict[str, float] = {}
    for name, metric in (
        ("perplexity_increase", increase),
        ("similarity", SentenceSimilarity(encoder)),
        ("word_edits", WordEditDistance()),
    ):
        metric.update(originals, poisoned)
        values = metric.compute()
        stealth |= {name: float(values["mean"]), f"{name}_spread": float(values["spread"])}
    return {**stealth, "perplexity_left_out": int(increase.left_out)}


def paired(clean: Rows, poisoned: Rows) -> Rows:
    """The poisoned rows whose clean row is at hand: few, if any, of a test split cut off the rows of files."""
    return poisoned.where(np.isin(poisoned.index, clean.index))


def drawn(poisoned: Sequence[Row], count: int, seed: int) -> Rows:
    """A random sample of at most ``count`` rows, in random order.

    Which of two rows comes first depends on the seed and their indices alone, not on the other rows.
    """
    rows = Rows.of(poisoned)
    places = [random.Random(f"{seed}/stealth/{index}").random() for index in rows.index]
    return rows.take(sorted(range(len(rows)), key=places.__getitem__)[:count])


def stealth_of(
    clean: Sequence[Row],
    poisoned: Sequence[Row],
    rows: int,
    seed: int,
    language_model: str = DEFAULT_LANGUAGE_MODEL,
    sentence_encoder: str = DEFAULT_ENCODER,
    cache_dir: str | Path | None = None,
) -> dict[str, float]:
    """Measures a sample of the poisoned rows of a split against the clean rows with the same indices.

    Args:
        clean: the split's clean rows.
        poisoned: the split's poisoned rows.
        rows: size of the sample, or all poisoned rows if there are fewer.
        seed: seed of the sample.
        language_model: the model that :class:`Perplexity` takes.
        sentence_encoder: the model that :class:`SentenceEncoder` takes.
        cache_dir: the folder in which perplexities are cached.

    Returns:
        The values of :func:`measure`, and under ``rows`` the number of rows measured.

    Raises:
        InputError: a model cannot be loaded.
    """
    originals = Rows.of(clean)
    texts = dict(zip(originals.index.tolist(), originals.text, strict=True))
    sample = drawn(poisoned, rows, seed)
    try:
        stealth = measure(
            [texts[index] for index in sample.index.tolist()],
            sample.text,
            Perplexity(language_model, None if cache_dir is None else str(cache_dir)),
            SentenceEncoder(sentence_encoder),
        )
    except InputError as error:
        remedy = " or ".join(filter(None, (error.remedy, "leave stealth out: --stealth_rows 0")))
        raise InputError(error.field, error.problem, remedy) from error
    return {"rows": len(sample), **stealth}


def as_json(stealth: Mapping[str, float]) -> str:
    """The values of :func:`stealth_of` as JSON; NaN becomes null, since JSON has no NaN."""
    return json.dumps({name: None if math.isnan(value) else value for name, value in stealth.items()}, indent=1) + "\n"


def as_lines(stealth: Mapping[str, float]) -> str:
    """The values of :func:`stealth_of` as text, one line per measure: mean ± standard deviation."""
    lines = []
    for title, decimals in STEALTH_MEASURES:
        name = title.replace(" ", "_")
        mean, spread = stealth[name], stealth[f"{name}_spread"]
        value = "undefined" if math.isnan(mean) else f"{mean:.{decimals}f} ± {spread:.{decimals}f}"
        lines.append(f"{title}: {value}\n")
    return "".join(lines)
