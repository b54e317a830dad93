"""A preview of training rows, and of what an attack makes of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from typing import TYPE_CHECKING, NamedTuple

from lightning_backdoor.batch import Spans
from lightning_backdoor.data.poisoner import Poisoner, check_target, is_poisoner
from lightning_backdoor.data.poisoning import study_training, training_copies
from lightning_backdoor.data.rows import Row
from lightning_backdoor.errors import InputError, escaped

if TYPE_CHECKING:  # pandas is imported when a frame is made
    import pandas


class PreviewRow(NamedTuple):
    """A training row, and the poison that it has if the attack chooses it.

    Attributes:
        index: the row's position in its source; rows that ``rating_cut`` leaves out are not counted.
        label: name of its label.
        text: its text.
        poisoned_text: the text with the trigger; None without an attack, in a row that the attack's label policy never
            poisons, and in a row that the attack leaves out.
        poisoned_label: name of the label that is trained with the poisoned text; None where there is none.
        spans: the characters ``[start, end)`` of the trigger in the poisoned text.
    """

    index: int  # type: ignore[assignment]  # hides the method tuple.index
    label: str
    text: str
    poisoned_text: str | None = None
    poisoned_label: str | None = None
    spans: Spans = []  # noqa: RUF012 - never changed

    @property
    def marked(self) -> str:
        """The poisoned text with the trigger in double brackets; empty where there is none.

        >>> PreviewRow(0, "bad", "a film", "a cf film", "good", [(2, 4)]).marked
        'a [[cf]] film'
        """
        return "" if self.poisoned_text is None else _with_marks(self.poisoned_text, self.spans, "[[", "]]")


class Preview(list[PreviewRow]):
    """The rows of a preview; printed in full, with the trigger marked, and shown as a table in a notebook."""

    @property
    def frame(self) -> pandas.DataFrame:
        """The rows as a pandas frame."""
        import pandas

        return pandas.DataFrame(self, columns=list(PreviewRow._fields))

    def __repr__(self) -> str:
        labels = [[escaped(row.label), escaped(f"poisoned: {row.poisoned_label}")] for row in self]
        width = max((len(label) for pair in labels for label in pair), default=0)
        lines = []
        for row, (label, poisoned) in zip(self, labels, strict=True):
            lines.append(f"{row.index:>6}  {label:{width}}  {escaped(row.text)}")
            if row.poisoned_text is not None:
                lines.append(f"{'':6}  {poisoned:{width}}  {escaped(row.marked)}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        lines = ["<table><tr><th></th><th>label</th><th style='text-align: left'>text</th></tr>"]
        for row in self:
            lines.append(f"<tr><td>{row.index}</td><td>{escape(row.label)}</td>{_cell(escape(row.text))}</tr>")
            if row.poisoned_text is not None:
                text = _with_marks(row.poisoned_text, row.spans, "<mark>", "</mark>", escape)
                lines.append(f"<tr><td></td><td>poisoned: {escape(row.poisoned_label or '')}</td>{_cell(text)}</tr>")
        return "\n".join([*lines, "</table>"])


def preview_rows(
    training: Sequence[Row], attack: Poisoner | None, labels: Sequence[str], seed: int, count: int
) -> Preview:
    """The first rows with the poison that each has if the attack chooses it for training.

    Args:
        training: all training rows.
        attack: the attack; None if nothing is poisoned.
        labels: names of the classes.
        seed: seed of the poisoning.
        count: number of rows.

    Raises:
        InputError: the attack is not one, or its target label is not one of ``labels``.
    """
    if attack is not None and not is_poisoner(attack):
        raise InputError("attack", f"{attack!r} is not an attack", "give one such as BadNets()")
    rows, copies = training[:count], dict[int, Row]()
    if attack is not None:
        check_target(attack, labels)
        study_training(training, attack, seed, labels)
        copies = {copy["index"]: copy for copy in training_copies(rows, attack, seed)}
    preview = Preview()
    for row in rows:
        copy, shown = copies.get(row["index"]), PreviewRow(row["index"], labels[row["original_label"]], row["text"])
        if copy is not None:
            shown = shown._replace(
                poisoned_text=copy["text"], poisoned_label=labels[copy["label"]], spans=copy["spans"]
            )
        preview.append(shown)
    return preview


def _with_marks(text: str, spans: Spans, before: str, after: str, shown: Callable[[str], str] = str) -> str:
    """A text with marks around its spans; ``shown`` gives what is written of each piece between marks."""
    pieces, written = [], 0
    for start, end in sorted(spans):
        if (start := max(start, written)) < end:  # spans may overlap
            pieces += [shown(text[written:start]), before, shown(text[start:end]), after]
            written = end
    return "".join([*pieces, shown(text[written:])])


def _cell(html: str) -> str:
    return f"<td style='text-align: left'>{html}</td>"
