"""The progress of ``scan``: resuming from the lines of its output, and the verdict on all of them."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

from lightning_backdoor.errors import InputError

#: below this p-value the verdict says that more texts are flagged than clean texts explain.
SIGNIFICANT = 0.01


class Tally:
    """Counts the texts of a scan, and the predictions for those that are flagged.

    Attributes:
        texts: number of texts.
        flagged: name of the predicted class of each flagged text.
    """

    def __init__(self) -> None:
        self.texts = 0
        self.flagged: list[str] = []

    def add(self, line: Mapping[str, Any]) -> None:
        """Counts a line of the output."""
        self.texts += 1
        if line["flagged"]:
            self.flagged.append(line["prediction"])

    def verdict(self, budget: float, labels: Sequence[str]) -> str:
        """One line stating whether more texts are flagged than a clean stream of texts explains.

        Args:
            budget: the share of clean texts that may be flagged.
            labels: names of the classes in the order of their indices.
        """
        if not self.texts:
            return "verdict: no texts"
        from lightning_backdoor.defenses.flagged_share import flagged_share_verdict

        labels = list(dict.fromkeys([*labels, *self.flagged]))  # resumed lines may come from another model
        predictions = [labels.index(name) for name in self.flagged]
        verdict = flagged_share_verdict(len(self.flagged), self.texts, budget, predictions)
        p_value = float(verdict.evidence["p_value"])
        counts = f"{len(self.flagged)} of {self.texts} texts flagged, {100 * len(self.flagged) / self.texts:.1f} %"
        p_text = f"p = {p_value:.2g}" if p_value else "p < 1e-323"
        test = f"{counts}, with a budget of {100 * budget:g} % of clean texts ({p_text})"
        if p_value >= SIGNIFICANT or verdict.suspected_label is None:
            return f"verdict: {test}; no more than clean texts explain"
        label = labels[verdict.suspected_label]
        return f"verdict: {test}; more than clean texts explain, most of them predicted as {label!r}"


def resume(options: argparse.Namespace, texts: Iterator[str], group_size: int) -> tuple[Tally, list[str]]:
    """Reads the lines that the output already has, takes their texts from ``texts``, and removes an incomplete line.

    Args:
        options: options of ``scan``; ``resume`` allows lines in the output.
        texts: texts of the input, from its beginning.
        group_size: number of texts that are read and scored together.

    Returns:
        The counts of these lines, and the texts of a group that is only partly in the output.

    Raises:
        InputError: the output exists and ``resume`` is false, or it contains the results of other texts.
    """
    output, tally = Path(options.output), Tally()
    if options.output == "-" or not output.exists() or output.stat().st_size == 0:
        return tally, []
    if not options.resume:
        raise InputError("output", f"{output} exists", "add --resume to continue it, or name another file")
    complete = 0
    begun: list[str] = []
    with output.open("r+b") as file:
        for encoded in takewhile(lambda line: line.endswith(b"\n"), file):
            text, line = next(texts, None), _parsed(encoded)
            if text is None or line is None or line["text"] != text:
                raise InputError(
                    "output",
                    f"line {tally.texts + 1} of {output} is not the result of that text of {options.input}",
                    "name another file",
                )
            tally.add(line)
            complete += len(encoded)
            begun.append(text)
            if len(begun) == group_size:
                begun.clear()
        file.truncate(complete)
    return tally, begun


def _parsed(encoded: bytes) -> dict[str, Any] | None:
    """Parses a line of the output; None if it is not one."""
    try:
        line = json.loads(encoded)
    except (ValueError, RecursionError):
        return None
    return line if isinstance(line, dict) and {"text", "flagged", "prediction"} <= line.keys() else None
