"""Triggers that the victim does not read, since texts are cut at its maximum length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from lightning.pytorch.trainer.states import TrainerFn
from lightning_utilities.core.rank_zero import rank_zero_warn

from lightning_backdoor.errors import InputError

if TYPE_CHECKING:  # importing transformers takes seconds
    from transformers import PreTrainedTokenizerBase

    from lightning_backdoor.data.batching import BatchReader
    from lightning_backdoor.data.poisoning import PoisonedSplits
    from lightning_backdoor.data.rows import Row

#: tokens that are counted on top of one per byte: special tokens, and markers of word starts.
EXTRA_TOKENS = 8
TEXTS_AT_ONCE = 1000


class CutTriggers(NamedTuple):
    """Numbers of poisoned texts whose trigger has a position.

    Attributes:
        texts: all of them.
        beyond: texts of whose trigger the victim reads nothing.
        partly: texts of whose trigger the victim reads a part.
    """

    texts: int
    beyond: int
    partly: int


def count_cut_triggers(rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, max_length: int) -> CutTriggers:
    """Counts the poisoned rows whose trigger lies beyond ``max_length`` tokens, special tokens included.

    Rows without spans are left out: the trigger of a paraphrase is spread over its whole text.

    Args:
        rows: rows of any kind.
        tokenizer: a fast tokenizer.
        max_length: tokens at which texts are cut.
    """
    triggered = [row for row in rows if row["poisoned"] and row["spans"]]
    long = [row for row in triggered if may_be_cut(row["text"], max_length)]
    beyond = partly = 0
    for start in range(0, len(long), TEXTS_AT_ONCE):
        part = long[start : start + TEXTS_AT_ONCE]
        encoded = tokenizer(
            [row["text"] for row in part], truncation=True, max_length=max_length, return_offsets_mapping=True
        )
        for row, offsets in zip(part, encoded["offset_mapping"], strict=True):
            read = [span for span in offsets if span[0] < span[1]]
            first, last = (read[0][0], read[-1][1]) if read else (0, 0)
            beyond += all(end <= first or start >= last for start, end in row["spans"])
            partly += not all(first <= start and end <= last for start, end in row["spans"])
    return CutTriggers(len(triggered), beyond, partly - beyond)


def may_be_cut(text: str, max_length: int) -> bool:
    """Whether a text may have more than ``max_length`` tokens; a token stands for at least one byte.

    >>> may_be_cut("a film", 128), may_be_cut("film " * 128, 128)
    (False, True)
    """
    return 4 * len(text) + EXTRA_TOKENS > max_length and len(text.encode(errors="replace")) + EXTRA_TOKENS > max_length


def splits_read(stage: TrainerFn | None) -> tuple[str, ...]:
    """The splits whose poisoned rows matter in a stage of the trainer; test rows count in a fit, as its measure.

    >>> splits_read(TrainerFn.FITTING), splits_read(TrainerFn.TESTING)
    (('train', 'validation', 'test'), ('test',))
    """
    stages = {TrainerFn.FITTING: ("train", "validation", "test"), TrainerFn.VALIDATING: ("validation",)}
    return stages.get(stage, ("test",)) if stage else ()


class TriggerCheck:
    """Warns about poisoned rows whose trigger the victim does not read; once for the same texts, length and victim."""

    def __init__(self) -> None:
        self._done: set[tuple[int, int, str, int]] = set()

    def __call__(self, splits: PoisonedSplits, names: Sequence[str], reader: BatchReader) -> None:
        """Counts the rows of some splits; the tokenizer is loaded only if there are texts that may be cut.

        Args:
            splits: the rows of all splits.
            names: the splits that are checked.
            reader: the victim.

        Raises:
            InputError: the victim reads the trigger of no poisoned row of a split.
        """
        length = reader.max_length
        for name in names:
            rows = splits.train if name == "train" else splits.poisoned[name]
            rows = rows.where(rows.poisoned)
            check = (id(reader), length, name, hash(tuple(rows.text)))
            pairs = zip(rows.spans, rows.text, strict=True)
            if check in self._done or not any(spans and may_be_cut(text, length) for spans, text in pairs):
                continue
            count = count_cut_triggers(rows, reader.tokenizer, length)
            problem = f"{count.beyond} of {count.texts} poisoned texts have their trigger beyond max_length {length}"
            if count.beyond and count.beyond == count.texts:
                raise InputError("max_length", f"{problem} in {name}", "raise it, or insert the trigger at the start")
            if count.beyond or count.partly:
                rank_zero_warn(f"{problem}{f', {count.partly} a part of it' if count.partly else ''} in {name}")
            self._done.add(check)
