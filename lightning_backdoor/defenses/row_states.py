"""The victim's hidden states of training rows, and the base class of data defenses that judge rows by them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lightning_backdoor.batch import Victim, pad, token_ids
from lightning_backdoor.data.cleaning import DataDefense, LabelledText, TrustedRows
from lightning_backdoor.errors import InputError
from lightning_backdoor.language.likelihood import plain_inference
from lightning_backdoor.models.bucketing import pass_limits
from lightning_backdoor.models.captures import readout_states
from lightning_backdoor.models.parallel import in_passes
from lightning_backdoor.outputs.progress import progress


def states_of_ids(
    victim: Victim, ids: Sequence[Sequence[int]], advance: Callable[[int], object] = lambda count: None
) -> Tensor:
    """The hidden state from which the victim's head reads, after the last layer, of each row of token ids.

    Rows are read in passes of rows of similar length, several passes at once on a processor.

    Args:
        victim: a victim in evaluation mode.
        ids: at least one row of token ids, each with at least one token.
        advance: is called with the number of rows of each pass that is done.

    Returns:
        (rows, hidden size), float32, on the victim's device.
    """
    network = victim.network
    device = network.device

    def compute(group: list[int]) -> Tensor:
        input_ids, mask = pad([ids[i] for i in group], victim.tokenizer)
        with plain_inference(device):
            return readout_states(network, input_ids.to(device), mask.to(device))[-1].float()

    lengths = [len(row) for row in ids]
    states: Tensor | None = None
    for group, values in in_passes(compute, lengths, pass_limits(device, network.dtype), device):
        states = values.new_empty(len(ids), values.shape[1]) if states is None else states
        states[group] = values
        advance(len(group))
    if states is None:
        raise ValueError("no rows of token ids")
    return states


def row_states(victim: Victim, texts: Sequence[str]) -> Tensor:
    """The hidden state from which the victim's head reads, after the last layer, of each text.

    Texts with the same tokens are read once. The passes do not depend on the order of the texts.

    Args:
        victim: a victim in evaluation mode.
        texts: at least one text.

    Returns:
        (texts, hidden size), float32, on the CPU.
    """
    ids = [tuple(row) for row in token_ids(texts, victim.tokenizer, victim.max_length)]
    distinct = sorted(set(ids))
    place = {row: i for i, row in enumerate(distinct)}
    with progress("reading training rows", len(distinct), "rows") as advance:
        states = states_of_ids(victim, distinct, advance).cpu()
    return states[[place[row] for row in ids]]


class StateFilter(DataDefense):
    """Base class of data defenses that remove rows by the victim's hidden states; a row is kept unchanged or removed.

    The hidden state of a row is that from which the victim's head reads (:func:`row_states`), so each row costs one
    forward pass. What is removed does not depend on the order of the rows.

    Attributes:
        fewest_rows: the fewest rows of a label from which the defense can learn.

    Example::

        class FarFromMean(StateFilter):
            def suspicious(self, states, labels):
                return (states - states.mean(dim=0)).norm(dim=1) > 10
    """

    needs_victim = True
    fewest_rows = 1

    @abstractmethod
    def suspicious(self, states: Tensor, labels: Tensor) -> Tensor:
        """Marks the rows to remove; (rows,), bool.

        Args:
            states: (rows, hidden size), float32, on the CPU.
            labels: (rows,), int64.
        """

    def clean(self, rows: Sequence[LabelledText], trusted: TrustedRows, victim: Victim | None) -> list[str | None]:
        """Removes the rows that are suspicious by the victim's hidden states.

        Raises:
            InputError: there is no victim, or a label has too few rows.
        """
        name = type(self).__name__
        if victim is None:
            raise InputError("data.victim", f"{name} needs a victim trained on the same rows", "give one")
        check_rows_per_label(rows, self.fewest_rows, name)
        # sums of floats depend on their order
        order = sorted(range(len(rows)), key=lambda i: rows[i])
        states = row_states(victim, [rows[i].text for i in order])
        marks = self.suspicious(states, torch.tensor([rows[i].label for i in order])).tolist()
        removed = {i for i, mark in zip(order, marks, strict=True) if mark}
        return [None if i in removed else row.text for i, row in enumerate(rows)]


def check_rows_per_label(rows: Sequence[LabelledText], fewest: int, name: str) -> None:
    """Checks that each label has enough rows.

    Args:
        rows: training rows.
        fewest: the fewest rows that a label may have.
        name: of the defense, for the message.

    Raises:
        InputError: a label has fewer rows, or there are no rows.
    """
    counts = torch.bincount(torch.tensor([row.label for row in rows], dtype=torch.long)).tolist()
    for label, count in enumerate(counts):
        if 0 < count < fewest:
            problem = f"{name} needs at least {fewest} training rows per label, label {label} has {count}"
            raise InputError("data_defense", problem, "give more rows, or leave the defense out")
    if not rows:
        raise InputError("data_defense", f"{name} has no training rows", "give rows")
