"""The token view: texts with their tokens shaded by score and the trigger outlined, as HTML that no text can break."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple, TypedDict

from jinja2 import Environment, PackageLoader, Template

from lightning_backdoor.batch import Spans


class ViewedText(TypedDict):
    """What is shown of a text.

    Attributes:
        index: the row's place in its source split.
        text: as the victim saw it.
        spans: the characters ``[start, end)`` of the trigger.
        poisoned: whether it carries the trigger.
        label: the name of its label before poisoning.
        prediction: the name of the label predicted.
        defended_prediction: the name of the label predicted after repair, or ``rejected``.
        flagged: whether its score is at or above the threshold.
        confirmed: whether the repair changed the prediction, or it was rejected.
        purified_text: the repaired text, None where there was no repair.
        score: of the text, higher is more suspicious.
        tokens: start, end and score of each token that has a score.
    """

    index: int
    text: str
    spans: Spans
    poisoned: bool
    label: str
    prediction: str
    defended_prediction: str
    flagged: bool
    confirmed: bool
    purified_text: str | None
    score: float
    tokens: list[tuple[int, int, float]]


class Piece(NamedTuple):
    """A stretch of a text that is shown alike; ``shade`` is from 0 to 1."""

    text: str
    score: float
    shade: float
    trigger: bool


def pieces(text: str, tokens: Sequence[tuple[int, int, float]], spans: Spans) -> list[Piece]:
    """Cuts a text where a token or the trigger begins or ends; the pieces put together are the text.

    Shades go from 0 (scores of zero and below) to 0.85 (the text's highest score).

    >>> [(piece.text, round(piece.shade, 2), piece.trigger) for piece in pieces("a cf film", [(2, 4, 3.0)], [(2, 4)])]
    [('a ', 0.0, False), ('cf', 0.85, True), (' film', 0.0, False)]
    """
    tokens = [token for token in tokens if math.isfinite(token[2])]
    highest = max((score for _, _, score in tokens), default=0.0)
    bounds = [(start, end) for start, end, _ in tokens] + list(spans)
    edges = sorted({0, len(text), *(min(max(edge, 0), len(text)) for pair in bounds for edge in pair)})
    result = []
    for start, end in pairwise(edges):
        score = max((s for a, b, s in tokens if a <= start and end <= b), default=0.0)
        shade = 0.85 * score / highest if highest > 0 and score > 0 else 0.0
        trigger = any(a <= start and end <= b for a, b in spans)
        result.append(Piece(text[start:end], score, shade, trigger))
    return result


def text_html(row: ViewedText) -> str:
    """One text as an HTML fragment: a table cell, without the facts about it."""
    return _template().render(fragment=pieces(row["text"], row["tokens"], row["spans"]))


def page_html(rows: Sequence[ViewedText], title: str, threshold: float) -> str:
    """A self-contained page of texts."""
    shown = [{**row, "pieces": pieces(row["text"], row["tokens"], row["spans"])} for row in rows]
    return _template().render(rows=shown, title=title, threshold=threshold)


@lru_cache(maxsize=1)
def _template() -> Template:
    environment = Environment(loader=PackageLoader("lightning_backdoor.outputs", ""), autoescape=True)
    return environment.get_template("token_view.html.jinja")
