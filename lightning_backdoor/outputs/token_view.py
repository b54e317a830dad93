"""The token view: HTML of texts with each token shaded by its score and the trigger outlined; texts are escaped."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple, NotRequired, TypedDict

from jinja2 import Environment, PackageLoader, Template

if TYPE_CHECKING:
    from lightning_backdoor.batch import Spans  # imports torch, which this module does not need


class ViewedText(TypedDict):
    """A text in the token view, with its labels, predictions and scores.

    Attributes:
        index: the row's position in its source split; rows that ``rating_cut`` leaves out are not counted.
        text: the text as the victim read it.
        spans: the characters ``[start, end)`` of the trigger.
        poisoned: whether the text carries the trigger.
        label: name of the label before poisoning.
        prediction: name of the label that the victim predicted.
        defended_prediction: name of the label predicted after the defense, or ``rejected``.
        flagged: whether the score is at or above the threshold.
        confirmed: whether the defense changed the prediction of a flagged text, or rejected the text.
        purified_text: the repaired text; None if there is none.
        score: score of the text, higher is more suspicious.
        tokens: start and end (in characters) and score of each token that has a score.
        defense: name of the defense, on a page of several.
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
    defense: NotRequired[str]


class Piece(NamedTuple):
    """A part of a text that is shown in one shade.

    Attributes:
        text: the characters.
        score: the highest score of the tokens that cover them; 0 if no token does.
        shade: opacity of the shade, from 0 to 1.
        trigger: whether they belong to the trigger.
    """

    text: str
    score: float
    shade: float
    trigger: bool


def pieces(text: str, tokens: Sequence[tuple[int, int, float]], spans: Spans) -> list[Piece]:
    """Cuts a text wherever a token or the trigger begins or ends; the pieces, joined, are the text.

    Shades range from 0 (for scores of zero and below) to 0.85 (for the text's highest score).

    Args:
        text: the text.
        tokens: start and end (in characters) and score of each token; tokens whose score is not finite are ignored.
        spans: the characters ``[start, end)`` of the trigger.

    >>> [(piece.text, round(piece.shade, 2), piece.trigger) for piece in pieces("a cf film", [(2, 4, 3.0)], [(2, 4)])]
    [('a ', 0.0, False), ('cf', 0.85, True), (' film', 0.0, False)]
    """
    tokens = [token for token in tokens if math.isfinite(token[2])]
    highest = max((score for _, _, score in tokens), default=0.0)
    inside = [(_inside(start, text), _inside(end, text), score) for start, end, score in tokens]
    triggers = [(_inside(start, text), _inside(end, text)) for start, end in spans]
    pairs = [*triggers, *((start, end) for start, end, _ in inside)]
    edges = sorted({0, len(text), *(edge for pair in pairs for edge in pair)})
    position = {edge: i for i, edge in enumerate(edges)}
    scores: dict[int, float] = {}  # by piece; a token or trigger covers the pieces between its edges
    for start, end, score in inside:
        for piece in range(position[start], position[end]):
            scores[piece] = max(score, scores.get(piece, score))
    in_trigger = {piece for start, end in triggers for piece in range(position[start], position[end])}
    result = []
    for piece, (start, end) in enumerate(pairwise(edges)):
        score = scores.get(piece, 0.0)
        shade = 0.85 * score / highest if highest > 0 and score > 0 else 0.0
        result.append(Piece(text[start:end], score, shade, piece in in_trigger))
    return result


def _inside(edge: int, text: str) -> int:
    return min(max(edge, 0), len(text))


def text_html(row: ViewedText) -> str:
    """The HTML of one text for a table cell: the shaded tokens, without labels and predictions."""
    return _template().render(fragment=pieces(row["text"], row["tokens"], row["spans"]))


def page_html(
    rows: Sequence[ViewedText],
    title: str,
    threshold: float | Mapping[str, float],
    labelled: bool = True,
    notes: Sequence[str] = (),
) -> str:
    """A self-contained HTML page of texts, with the labels, predictions and scores of each.

    Args:
        rows: the texts.
        title: title of the page.
        threshold: threshold of the scores, or that of each of several defenses by its name.
        labelled: whether it is known which label the texts have and which of them are poisoned.
        notes: sentences about all texts, which the page begins with.
    """
    thresholds = threshold if isinstance(threshold, Mapping) else {"": threshold}
    cut_rows = [{**row, "pieces": pieces(row["text"], row["tokens"], row["spans"])} for row in rows]
    return _template().render(rows=cut_rows, title=title, thresholds=thresholds, labelled=labelled, notes=notes)


@lru_cache(maxsize=1)
def _template() -> Template:
    environment = Environment(loader=PackageLoader("lightning_backdoor.outputs", ""), autoescape=True)
    return environment.get_template("token_view.html.jinja")
