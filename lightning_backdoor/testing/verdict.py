"""Checks the verdict of an inspection."""

from __future__ import annotations

import math
from typing import Any

from lightning_backdoor.defenses.inspection import ModelVerdict
from lightning_backdoor.testing.material import require


def check_verdict(where: str, verdict: Any) -> None:
    """Checks that an answer is a verdict that can be logged and written.

    Args:
        where: what answered it, for messages.
        verdict: the answer.

    Raises:
        AssertionError: it is not.
    """
    require(isinstance(verdict, ModelVerdict), where, f"answers {type(verdict).__name__}, not ModelVerdict")
    # numbers of other types, such as tensors, cannot be written
    is_number = type(verdict.score) in (int, float) and math.isfinite(verdict.score)
    require(is_number, where, f"score is {verdict.score!r:.100}, not a finite number")
    label = verdict.suspected_label
    known = label is None or (type(label) is int and label in (0, 1))
    require(known, where, f"suspected_label {label!r:.100} is not a label of the model or None")
    for key, value in verdict.evidence.items():
        require(isinstance(value, (int, float, str)), where, f"evidence {key} is {value!r:.100}, not a number or text")


def same_verdicts(verdict: ModelVerdict, other: ModelVerdict) -> bool:
    """Whether two verdicts say the same but for rounding.

    >>> same_verdicts(ModelVerdict(1.0, 0, {"p": 0.5}), ModelVerdict(1.0 + 1e-9, 0, {"p": 0.5}))
    True
    """
    return (
        _are_close(verdict.score, other.score)
        and verdict.suspected_label == other.suspected_label
        and verdict.evidence.keys() == other.evidence.keys()
        and all(_are_close(value, other.evidence[key]) for key, value in verdict.evidence.items())
    )


def _are_close(value: float | str, other: float | str) -> bool:
    """Whether two numbers, or texts, of two verdicts are the same but for rounding; also where both are NaN."""
    if isinstance(value, str) or isinstance(other, str):
        return value == other
    return math.isclose(value, other, rel_tol=1e-6) or (math.isnan(value) and math.isnan(other))
