"""The progress of ``scan``: resuming from the lines of its output, and the verdict on all of them."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

from lightning_backdoor.commands.scan_output import Output
from lightning_backdoor.commands.scan_settings import check_settings
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


def resume(
    options: argparse.Namespace, output: Output, texts: Iterator[str], settings: Mapping[str, Any], group_size: int
) -> tuple[Tally, list[str], Iterator[str]]:
    """Reads the lines that the output already has, and removes an incomplete line at its end.

    Args:
        options: options of ``scan``; ``resume`` allows lines in the output.
        output: the output.
        texts: texts of the input, from its beginning.
        settings: see :func:`lightning_backdoor.commands.scan_settings.scan_settings`.
        group_size: number of texts that are read and scored together.

    Returns:
        The counts of these lines, the texts of a group that is only partly in the output, and the texts after them.

    Raises:
        InputError: the output has lines and ``resume`` is false, or they are the results of other texts or settings.
            The output is unchanged.
    """
    tally = Tally()
    if not output.has_lines():
        return tally, [], texts
    assert output.path is not None
    if not options.resume:
        raise InputError("output", f"{output.path} exists", "add --resume to continue it, or name another file")
    check_settings(output.path, settings)
    complete = 0
    begun: list[str] = []
    for encoded in output.lines():
        text, line, whole = next(texts, None), _parsed(encoded), encoded.endswith(b"\n")
        if text is None or not (line and line["text"] == text if whole else _begins(encoded, text)):
            problem = f"line {tally.texts + 1} of {output.path} is not the result of that text of {options.input}"
            raise InputError("output", problem, "name another file")
        if not whole:
            texts = chain([text], texts)
            break
        assert line is not None
        tally.add(line)
        complete += len(encoded)
        begun.append(text)
        if len(begun) == group_size:
            begun.clear()
    output.cut(complete)
    return tally, begun, texts


def _parsed(encoded: bytes) -> dict[str, Any] | None:
    """Parses a line of the output; None if it is not one."""
    try:
        line = json.loads(encoded)
    except (ValueError, RecursionError):
        return None
    types = {"text": str, "flagged": bool, "prediction": str}
    if not isinstance(line, dict) or not all(isinstance(line.get(name), type_) for name, type_ in types.items()):
        return None
    return line


def _begins(encoded: bytes, text: str) -> bool:
    """Whether some bytes are the beginning of the line of a text."""
    start = line_text({"text": text, "prediction": ""})[: -len('"}\n')].encode()
    return encoded.startswith(start) or start.startswith(encoded)


def line_text(line: Mapping[str, Any]) -> str:
    """A line of the output."""
    return json.dumps(line, ensure_ascii=False) + "\n"
