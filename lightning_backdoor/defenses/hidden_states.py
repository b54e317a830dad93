"""The base class of defenses that score a text by its hidden states, and how they read clean reference rows."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lightning_backdoor.batch import Batch, Victim
from lightning_backdoor.data.splitting import stratified_parts
from lightning_backdoor.defenses.defense import Defense, Scores
from lightning_backdoor.errors import InputError
from lightning_backdoor.models.captures import Reads, plain_logits, readout_states, shared

#: which token's state stands for a text; ``mean`` is the mean over all tokens.
Token = Literal["readout", "last", "mean"]

#: what to do about too few rows.
MORE = "give more clean validation rows"


class Reference(NamedTuple):
    """Clean reference rows, in an order that depends on their texts alone.

    Attributes:
        texts: of the rows.
        labels: (rows,), int64; of rows without a label, the victim's prediction.
        states: (layers + 1, rows, hidden size), float64, on the processor.
    """

    texts: list[str]
    labels: Tensor
    states: Tensor

    def split(self, share: float, seed: int) -> tuple[Reference, Reference]:
        """Two stratified parts of the rows, the second of about the given share, and of two rows or more.

        Rows of one text are in the same part. The first part has a row of every class; where texts are not repeated, it
        also has more rows than classes, if there are as many beside the two of the second.

        Raises:
            InputError: texts are repeated so that the second part would not have two that differ.
        """
        labels, count = self.labels.tolist(), len(self.texts)
        needed = max(labels) + 2
        share = max(min(share, 1 - needed / count), 2 / count)
        first, _ = stratified_parts(labels, [1 - share, share], f"{seed}/held out", self.texts)
        kept = set(first)

        def of_text(row: int) -> set[int]:
            return {other for other, text in enumerate(self.texts) if text == self.texts[row]}

        def classes(rows: set[int]) -> set[int]:
            return {labels[row] for row in rows}

        for label in sorted({*labels} - classes(kept)):
            kept |= of_text(labels.index(label))
            # a text whose classes have others goes in exchange, so that the second part keeps its size
            without = (kept - of_text(row) for row in sorted(kept))
            others = (rest for rest in without if len(rest) >= needed and classes(rest) == classes(kept))
            kept = next(others, kept)
        second = self.take(sorted({*range(count)} - kept))
        if len({*second.texts}) < 2:
            problem = f"{count} rows of {len({*self.texts})} texts cannot be divided into rows to fit and rows held out"
            raise InputError("reference rows", problem, MORE)
        return self.take(sorted(kept)), second

    def take(self, rows: Sequence[int]) -> Reference:
        """The rows of these numbers."""
        return Reference([self.texts[row] for row in rows], self.labels[rows], self.states[:, rows])


class StateDefense(Defense):
    """Base class of defenses that score a text by its hidden states alone.

    A subclass implements :meth:`fit`, which computes statistics of clean states, and :meth:`score_states`. Statistics
    are buffers, named in :attr:`learned`, so that checkpoints have them; they have any size.

    Args:
        fpr: see :class:`Defense`.
        seed: see :class:`Defense`.
        token: whose state stands for a text: that of the token that the head reads (``readout``), the last token, or
            the mean over all tokens. Only the readout token's states come with the victim's own forward pass; others
            take a pass of their own.

    Attributes:
        learned: names of the buffers.
        tokens: the values of ``token`` that the class has.

    Raises:
        InputError: a value is out of range.
    """

    reads: ClassVar[Reads] = frozenset({"hidden_states"})
    learned: ClassVar[tuple[str, ...]] = ()
    tokens: ClassVar[tuple[Token, ...]] = get_args(Token)

    def __init__(self, fpr: float, seed: int | None, token: Token = "readout") -> None:
        super().__init__(fpr=fpr, seed=seed)
        if token not in self.tokens:
            problem = f"{token!r} is not a token of {type(self).__name__}"
            raise InputError("token", problem, f"give one of {', '.join(self.tokens)}")
        self.token = token
        for name in self.learned:
            self.register_buffer(name, torch.empty(0))
        self.register_load_state_dict_pre_hook(make_room)  # type: ignore[no-untyped-call]

    @abstractmethod
    def fit(self, victim: Victim, reference: Reference) -> dict[str, Tensor]:
        """Computes what is learned, by the names of :attr:`learned`, from clean rows.

        Raises:
            InputError: there are too few rows.
        """

    @abstractmethod
    def score_states(self, states: Tensor) -> Tensor:
        """Scores of states, (layers + 1, batch, hidden size); (batch,), higher is more suspicious."""

    def learn(self, victim: Victim, clean_batches: Iterable[Batch]) -> None:
        """Learns the statistics of clean states.

        Raises:
            InputError: there are too few rows.
        """
        reference = read_reference(victim, clean_batches, self.token)
        self.check_reference(reference.labels.tolist(), victim.network.config.num_labels)
        device = victim.network.device
        # Apple's GPUs have no float64
        dtype = torch.float32 if device.type == "mps" else torch.float64
        for name, value in self.fit(victim, reference).items():
            setattr(self, name, value.to(device, dtype if value.is_floating_point() else value.dtype))

    @torch.no_grad()
    def score(self, victim: Victim, batch: Batch) -> Scores:
        """Scores each text by its hidden states.

        Raises:
            RuntimeError: :meth:`learn` has not been called.
        """
        first: Tensor = getattr(self, self.learned[0])
        if not first.numel():
            raise RuntimeError(f"{type(self).__name__} has no statistics; call learn with clean reference batches")
        states = token_states(victim.network, batch["input_ids"], batch["attention_mask"], self.token)
        return Scores(self.score_states(states.to(first.device, first.dtype)).float())


class SplitStateDefense(StateDefense):
    """Base class of state defenses that are fitted on a part of the reference rows and standardise scores on the rest.

    A subclass implements :meth:`fit_states` in place of :meth:`fit`.

    Args:
        shrinkage: share of a covariance that is replaced by a multiple of the identity, above 0 and at most 1.
        held_out: share of the reference rows that standardise the scores, above 0 and below 1.
        fpr: see :class:`StateDefense`.
        seed: seed of the split; None takes the seed of the run.
        token: see :class:`StateDefense`.

    Raises:
        InputError: a value is out of range.
    """

    def __init__(
        self, shrinkage: float, held_out: float, fpr: float, seed: int | None, token: Token = "readout"
    ) -> None:
        super().__init__(fpr, seed, token)
        if not 0 < shrinkage <= 1:
            raise InputError("shrinkage", f"{shrinkage} is not a share", "give a number above 0 and at most 1")
        if not 0 < held_out < 1:
            raise InputError("held_out", f"{held_out} is not a share of the rows", "give a number between 0 and 1")
        self.shrinkage = shrinkage
        self.held_out = held_out

    @abstractmethod
    def fit_states(self, fitted: Tensor, labels: Tensor, others: Tensor) -> dict[str, Tensor]:
        """Computes what is learned from states, (layers + 1, rows, hidden size), float64.

        Args:
            fitted: states of the rows that the defense is fitted on.
            labels: (rows,), int64, of these rows.
            others: states of the held-out rows.
        """

    def check_reference(self, labels: Sequence[int], classes: int) -> None:
        """Checks that every class has a clean row, and that two more rows than for the fit are there."""
        check_classes(labels, classes, more=2)

    def fit(self, victim: Victim, reference: Reference) -> dict[str, Tensor]:
        """Splits the rows, and fits on both parts."""
        classes = int(reference.labels.max()) + 1
        fitted, others = reference.split(self.held_out, self.seed or 0)
        check_classes(fitted.labels.tolist(), classes)
        return self.fit_states(fitted.states, fitted.labels, others.states)


def token_states(network: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor, token: Token) -> Tensor:
    """The hidden states that stand for each text, after the embeddings and after each layer.

    Args:
        network: any sequence classifier of transformers.
        input_ids: (batch, length), int64.
        attention_mask: (batch, length), int64, 1 for tokens and 0 for padding.
        token: whose state.

    Returns:
        (layers + 1, batch, hidden size), in the precision of the network.
    """
    if token == "readout":
        return readout_states(network, input_ids, attention_mask)
    with torch.no_grad():
        return shared(_states_of, network, input_ids, attention_mask, token=token)


def _states_of(network: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor, token: Token) -> Tensor:
    output = network(input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=True)
    if token == "last":
        weight = torch.zeros_like(attention_mask)
        last = (torch.arange(input_ids.shape[1], device=input_ids.device) * attention_mask).argmax(dim=1)
        weight[torch.arange(len(input_ids), device=input_ids.device), last] = 1
    else:
        weight = attention_mask
    share = (weight / weight.sum(dim=1, keepdim=True))[:, None].to(output.hidden_states[0].dtype)
    return torch.stack([(share @ layer).squeeze(1) for layer in output.hidden_states])


@torch.no_grad()
def read_reference(victim: Victim, clean_batches: Iterable[Batch], token: Token = "readout") -> Reference:
    """Reads labels and hidden states of clean rows; their order does not depend on the batches.

    Raises:
        InputError: there is no row.
    """
    texts: list[str] = []
    labels, states = [], []
    for batch in clean_batches:
        inputs = batch["input_ids"], batch["attention_mask"]
        states.append(token_states(victim.network, *inputs, token).cpu().double())  # not all devices have float64
        label = batch["label"].cpu()
        if (label < 0).any():
            label = label.where(label >= 0, plain_logits(victim.network, *inputs).argmax(dim=-1).cpu())
        labels.append(label)
        texts += batch["text"]
    if not texts:
        raise InputError("reference rows", "there are none", "a defense that learns needs clean validation rows")
    order = sorted(range(len(texts)), key=texts.__getitem__)
    return Reference([texts[row] for row in order], torch.cat(labels)[order], torch.cat(states, dim=1)[:, order])


def check_classes(labels: Sequence[int], classes: int, more: int = 0) -> None:
    """Checks that rows suffice for class means and a covariance: every class has one, and one row is left over.

    Args:
        labels: of the rows.
        classes: number of classes.
        more: further rows that are needed.

    Raises:
        InputError: a class has no row, or there are fewer than ``classes + 1 + more`` rows.

    >>> check_classes([0, 1, 1], classes=2)
    """
    missing = set(range(classes)) - set(labels)
    if missing:
        raise InputError("reference rows", f"none of {len(labels)} clean rows has label {min(missing)}", MORE)
    check_count(labels, classes, more)


def check_count(labels: Sequence[int], classes: int, more: int = 0) -> None:
    """Checks that there are at least ``classes + 1 + more`` rows, whatever their labels.

    Raises:
        InputError: there are fewer.
    """
    if len(labels) < classes + 1 + more:
        problem = f"{len(labels)} clean rows are fewer than the {classes + 1 + more} that {classes} classes need"
        raise InputError("reference rows", problem, MORE)


def make_room(module: torch.nn.Module, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
    """A pre-hook of loading a state: gives the buffers named by ``learned`` the sizes of those that are loaded."""
    names: tuple[str, ...] = module.learned  # type: ignore[assignment]
    for name in names:
        if prefix + name in state_dict:
            setattr(module, name, torch.empty_like(state_dict[prefix + name], device=getattr(module, name).device))
