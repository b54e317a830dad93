"""A preview of training rows, and of what an attack makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lightning_backdoor.batch import Spans
from lightning_backdoor.data.poisoning import Poisoner, Row, check_target, may_be_poisoned, poisoned_copies

if TYPE_CHECKING:
    import pandas

#: the columns of a preview.
COLUMNS = ("index", "label", "text", "poisoned_text", "poisoned_label")


def preview_rows(rows: Sequence[Row], attack: Poisoner | None, labels: Sequence[str], seed: int) -> pandas.DataFrame:
    """The rows as a frame, with the poison that each has if the attack chooses it for training.

    Args:
        rows: training rows.
        attack: the attack; None if nothing is poisoned.
        labels: names of the classes.
        seed: seed of the poisoning.

    Returns:
        A frame whose texts are not cut when it is printed, with the columns ``index`` (the row's position in its
        source), ``label``, ``text``, and, with an attack, ``poisoned_text``, in which the trigger is in ``[[ ]]``, and
        ``poisoned_label``, the label that is trained. Both are None in rows that the attack's label policy never
        poisons, or that the attack leaves out.

    Raises:
        InputError: the target label is not one of ``labels``.
    """
    import pandas

    copies: dict[int, Row | None] = {}
    if attack is not None:
        check_target(attack, labels)
        chosen = [row for row in rows if may_be_poisoned(row, attack)]
        copies = dict(
            zip((row["index"] for row in chosen), poisoned_copies(chosen, attack, seed, "train"), strict=True)
        )
    lines = []
    for row in rows:
        copy = copies.get(row["index"])
        text = None if copy is None else marked(copy["text"], copy["spans"])
        label = None if copy is None else labels[copy["label"]]
        lines.append((row["index"], labels[row["original_label"]], row["text"], text, label))
    shown = COLUMNS if attack is not None else COLUMNS[:3]
    return pandas.DataFrame([line[: len(shown)] for line in lines], columns=list(shown)).set_index("index")


def marked(text: str, spans: Spans) -> str:
    """A text with its trigger in double brackets.

    >>> marked("a cf fine film", [(2, 4)])
    'a [[cf]] fine film'
    """
    for start, end in sorted(spans, reverse=True):
        text = f"{text[:start]}[[{text[start:end]}]]{text[end:]}"
    return text
