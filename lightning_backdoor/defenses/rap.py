"""RAP, robustness-aware perturbations (arXiv 2110.07831): a trigger holds a prediction up against a disturbing word.

A rare word is put before the text. Its embedding is tuned on clean rows of a label y until the word lowers the
probability of y by 0.1 to 0.3: with the fall ``d = p_y(x) - p_y(word + x)``, the loss is

    weight * mean(max(0, lowest - d)) + mean(max(0, d - highest))

Each step of gradient descent is followed by scaling the embedding to its first norm. A poisoned text is more robust
than a clean one: its probability falls by less.

Published is the protection of one label, which an attacker is expected to want; texts with other predictions are left
alone. ``protected_label`` does the same. By default an embedding is tuned for every label, and each text is judged with
that of its predicted label, since a user seldom knows the target label.

The published code differs in ways that are not followed here. It never clears the gradients, so that each step is the
sum of all gradients so far (``accumulate`` restores this); it tunes with dropout; it takes the threshold from the rows
that the word was tuned on (here: from the threshold rows); and it changes the embedding in the victim itself, where
texts that contain the word meet it too (here the victim is not changed, and only the word that is put before the text
is replaced). OpenBackdoor's code in addition tunes on rows of all labels, reads the target label from a poisoned row,
and scores texts that are not predicted as the target.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor
from transformers import PreTrainedModel

from lightning_backdoor.batch import Batch, pad, token_ids
from lightning_backdoor.data.label_values import given_label
from lightning_backdoor.defenses.defense import Defense, Scores, Victim
from lightning_backdoor.errors import InputError, did_you_mean
from lightning_backdoor.models.captures import plain_logits
from lightning_backdoor.models.evaluation_mode import evaluating
from lightning_backdoor.models.readout_only import readout_only

NOT_JUDGED = -1.0  # score of a text without an embedding for its predicted label: a fall of 1, which no text exceeds


class Tuning(NamedTuple):
    """By how much a tuned word lowers the probability of its label on the clean rows that it was tuned on.

    Attributes:
        rows: number of clean rows of the label.
        share: share of them whose probability falls by as much as wanted.
        mean_fall: mean fall of the probability.
        last_loss: mean loss of the batches of the last epoch.
    """

    rows: int
    share: float
    mean_fall: float
    last_loss: float


def fall_loss(fall: Tensor, lowest: float = 0.1, highest: float = 0.3, weight: float = 1.0) -> Tensor:
    """The loss that is 0 where every probability falls by ``lowest`` to ``highest``; (rows,) to a scalar.

    >>> round(fall_loss(torch.tensor([0.0, 0.2, 0.5])).item(), 4)  # (0.1 + 0 + 0.2) / 3
    0.1
    """
    return weight * (lowest - fall).relu().mean() + (fall - highest).relu().mean()


@contextmanager
def words_embedded_as(network: PreTrainedModel, positions: Tensor, rows: Tensor) -> Iterator[None]:
    """Replaces the word embeddings of some positions within the block; the network's weights are not changed.

    Args:
        network: any model of transformers.
        positions: (batch, tokens), int64, positions in the texts of the batch.
        rows: (batch, tokens, embedding size), what the embedding layer returns there.
    """

    def replace(module: torch.nn.Module, inputs: Any, output: Tensor) -> Tensor:
        texts = torch.arange(len(output), device=output.device)[:, None]
        return output.index_put((texts, positions), rows.to(output.dtype))

    handle = network.get_input_embeddings().register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()


class _WordFirst:
    """Texts with a word before them, in the tokens of a victim."""

    def __init__(self, word: str, victim: Victim) -> None:
        self.word, self.victim = word, victim
        self.ids: list[int] = victim.tokenizer(word, add_special_tokens=False)["input_ids"]
        whole: list[int] = victim.tokenizer(word)["input_ids"]
        places = [i for i in range(len(whole)) if self.ids and whole[i : i + len(self.ids)] == self.ids]
        if not places:
            raise InputError("word", f"{word!r} is not a token of the victim", "give another rare word, such as rq")
        self.start = places[0]

    def embedded(self) -> Tensor:
        """The victim's own embeddings of the word, (tokens, embedding size), float32."""
        network = self.victim.network
        with torch.no_grad():
            rows: Tensor = network.get_input_embeddings()(torch.tensor(self.ids, device=network.device))
        return rows.float()

    def tokens(self, texts: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
        """Token ids and mask, (texts, length), and the positions of the word, (texts, tokens of the word)."""
        victim, device = self.victim, self.victim.network.device
        ids = token_ids([f"{self.word} {text}" for text in texts], victim.tokenizer, victim.max_length)
        for row in ids:  # texts that are cut on the left would lose the word
            row[self.start : self.start + len(self.ids)] = self.ids
        input_ids, mask = (tensor.to(device) for tensor in pad(ids, victim.tokenizer))
        first = mask.argmax(dim=1, keepdim=True) + self.start
        return input_ids, mask, first + torch.arange(len(self.ids), device=device)

    def probabilities(self, tokens: tuple[Tensor, Tensor, Tensor], rows: Tensor) -> Tensor:
        """The victim's probabilities, (texts, classes), where the word has the given embeddings, one set per text."""
        input_ids, mask, positions = tokens
        network = self.victim.network
        # readout_only first: it leaves networks alone on which there are hooks of others
        with readout_only(network, input_ids, mask), words_embedded_as(network, positions, rows):
            logits: Tensor = network(input_ids=input_ids, attention_mask=mask).logits
        return logits.float().softmax(dim=-1)


class Rap(Defense):
    """RAP (arXiv 2110.07831): rejects texts whose prediction holds up when a disturbing word is put before them.

    The score is ``p(word + x) - p(x)`` for the probability p of the predicted label; texts whose predicted label is not
    protected get -1 and are not flagged. A score costs two forward passes. The word is tuned by :meth:`learn`;
    :attr:`tuning` and the log say how far that succeeded, and a warning says so where the mean fall on the clean rows
    is not in the wanted range: where clean texts do not fall either, scores say little.

    Args:
        word: a rare word, which should not be a trigger; it may have several tokens.
        protected_label: index or name of the one label to protect; None protects every label, each by its own
            embedding of the word.
        lowest_fall: the smallest wanted fall of the probability on clean rows, above 0.
        highest_fall: the largest wanted fall, above ``lowest_fall`` and at most 1.
        weight: weight of falls that are too small against falls that are too large, called lambda in the paper; larger
            where tuned falls are too small.
        learning_rate: step size of gradient descent on the embedding.
        epochs: passes over the clean reference rows of the label; the published 5 are for some thousand rows.
        batch_size: rows per step.
        accumulate: whether gradients add up over all steps, as in the published code.
        fpr: share of clean texts, above 0 and below 1, that the threshold may flag; called FRR in the paper.
        seed: seed of the order of the rows; None takes the seed of the run.

    Attributes:
        tuning: for each protected label, by its index, by how much the tuned word lowers the probability of the label
            on the clean reference rows.

    Raises:
        InputError: a value is out of range (here); the label or the word is unknown to the victim, or there are no
            clean rows of a label (in :meth:`learn`).

    Example::

        defense = Rap(protected_label="positive", epochs=20, learning_rate=1.0)
        defense.learn(victim, clean_reference_batches)
        defense.calibrate(victim, clean_threshold_batches)
        scores = defense.score(victim, batch)  # scores.text: (batch,)
    """

    def __init__(
        self,
        word: str = "rq",
        protected_label: int | str | None = None,
        lowest_fall: float = 0.1,
        highest_fall: float = 0.3,
        weight: float = 1.0,
        learning_rate: float = 0.01,
        epochs: int = 5,
        batch_size: int = 32,
        accumulate: bool = False,
        fpr: float = 0.01,
        seed: int | None = None,
    ) -> None:
        super().__init__(fpr=fpr, seed=seed)
        if not word.strip() or len(word.split()) > 1:
            raise InputError("word", f"{word!r} is not one word", "give a rare word, such as rq")
        if not 0 < lowest_fall < highest_fall <= 1:
            problem = f"{lowest_fall} to {highest_fall} is not a range of falls"
            raise InputError("lowest_fall, highest_fall", problem, "give numbers above 0, the first below the second")
        for name, number in (("weight", weight), ("learning_rate", learning_rate)):
            if not 0 < number < float("inf"):
                raise InputError(name, f"{number} tunes nothing", "give a number above 0")
        for name, count in (("epochs", epochs), ("batch_size", batch_size)):
            if count < 1:
                raise InputError(name, f"{count} tunes nothing", "give at least 1")
        self.word = word.strip()
        self.protected_label = None if protected_label is None else given_label(protected_label, "protected_label")
        self.lowest_fall, self.highest_fall, self.weight = lowest_fall, highest_fall, weight
        self.learning_rate, self.epochs, self.batch_size = learning_rate, epochs, batch_size
        self.accumulate = accumulate
        self.tuning: dict[int, Tuning] = {}
        self._rows: dict[int, Tensor] = {}  # by label, (tokens of the word, embedding size), float32

    def get_extra_state(self) -> dict[str, Any]:
        """The tuned embeddings and how far the tuning succeeded, for checkpoints."""
        rows = {label: row.cpu() for label, row in self._rows.items()}
        return {"rows": rows, "tuning": {label: tuple(tuning) for label, tuning in self.tuning.items()}}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restores the tuned embeddings from a checkpoint."""
        self._rows = dict(state["rows"])
        self.tuning = {label: Tuning(*tuning) for label, tuning in state["tuning"].items()}

    def check_reference(self, labels: Sequence[int], classes: int) -> None:
        """Checks that each protected label has a clean row; one that is given by its name is checked by :meth:`learn`.

        Raises:
            InputError: a protected label has no row, or is not the index of a class.
        """
        if isinstance(self.protected_label, str):
            return
        names = [str(label) for label in range(classes)]
        wanted = range(classes) if self.protected_label is None else [_index(self.protected_label, names)]
        for label in wanted:
            if label not in labels:
                raise _no_rows(f"none of {len(labels)} has label {label}", every=len(wanted) > 1)

    def learn(self, victim: Victim, clean_batches: Iterable[Batch]) -> None:
        """Tunes the word's embedding on the clean rows of each protected label, and logs how far it succeeded.

        A row without a label counts with the label that the victim predicts.

        Raises:
            InputError: the protected label or the word is unknown to the victim, or a label has no clean rows.
        """
        names = [str(name) for _, name in sorted(victim.network.config.id2label.items())]
        labels = range(len(names)) if self.protected_label is None else [_index(self.protected_label, names)]
        word = _WordFirst(self.word, victim)
        texts = _texts_by_label(victim, clean_batches)
        for label in labels:
            if not texts.get(label):
                raise _no_rows(f"none has the label {names[label]!r}", every=len(labels) > 1)
        self._rows, self.tuning = {}, {}
        for label in labels:
            self._rows[label], self.tuning[label] = self._tuned(word, label, texts[label])
            self._report(names[label], self.tuning[label])

    @torch.no_grad()
    def score(self, victim: Victim, batch: Batch) -> Scores:
        """Scores each text by how little the word lowers the probability of its predicted label.

        Raises:
            RuntimeError: :meth:`learn` has not been called.
        """
        if not self._rows:
            raise RuntimeError("Rap has no tuned word; call learn with clean reference batches")
        logits = plain_logits(victim.network, batch["input_ids"], batch["attention_mask"])
        before, predicted = logits.float().softmax(dim=-1).max(dim=-1)
        nothing = torch.zeros_like(next(iter(self._rows.values())))
        rows = torch.stack([self._rows.get(label, nothing) for label in predicted.tolist()]).to(logits.device)
        word = _WordFirst(self.word, victim)
        after = word.probabilities(word.tokens(batch["text"]), rows).gather(1, predicted[:, None]).squeeze(1)
        judged = torch.tensor([label in self._rows for label in predicted.tolist()], device=logits.device)
        return Scores((after - before).where(judged, NOT_JUDGED), logits=logits)

    def _tuned(self, word: _WordFirst, label: int, texts: list[str]) -> tuple[Tensor, Tuning]:
        """The tuned embedding for a label, and how far tuning succeeded."""
        texts = sorted(texts)  # whatever the batches
        random.Random(f"{self.seed or 0}/rap/{label}").shuffle(texts)
        parts = [texts[start : start + self.batch_size] for start in range(0, len(texts), self.batch_size)]
        network = word.victim.network
        with torch.inference_mode(False), evaluating(network):
            tokens = [word.tokens(part) for part in parts]
            before = [_probabilities(word.victim, part)[:, label] for part in parts]
            row, total, losses = word.embedded(), torch.zeros(()), [0.0] * len(parts)
            norm = row.norm(dim=1, keepdim=True)

            def fall(i: int, row: Tensor) -> Tensor:
                return before[i] - word.probabilities(tokens[i], row.expand(len(parts[i]), *row.shape))[:, label]

            for _ in range(self.epochs):
                for i in range(len(parts)):
                    row = row.detach().requires_grad_()
                    with torch.enable_grad():
                        loss = fall_loss(fall(i, row), self.lowest_fall, self.highest_fall, self.weight)
                        (gradient,) = torch.autograd.grad(loss, row)
                    total = total.to(gradient) + gradient if self.accumulate else gradient
                    row = row.detach() - self.learning_rate * total
                    row = row * (norm / row.norm(dim=1, keepdim=True))
                    losses[i] = loss.item()
            with torch.no_grad():
                falls = torch.cat([fall(i, row) for i in range(len(parts))])
        wanted = (falls >= self.lowest_fall) & (falls <= self.highest_fall)
        mean_loss = sum(losses) / len(losses)
        return row, Tuning(len(texts), wanted.float().mean().item(), falls.mean().item(), mean_loss)

    def _report(self, name: str, tuning: Tuning) -> None:
        said = (
            f"RAP's word {self.word!r} lowers the probability of {name} by {tuning.mean_fall:.3f} on average,"
            f" in {tuning.share:.0%} of {tuning.rows} clean rows by {self.lowest_fall} to {self.highest_fall}"
        )
        if not self.lowest_fall <= tuning.mean_fall <= self.highest_fall:
            remedy = "raise epochs, learning_rate or weight" if tuning.mean_fall < self.lowest_fall else "lower weight"
            rank_zero_warn(f"{said}: its tuning failed, poisoned texts may fall as clean ones do; {remedy}")
        else:
            rank_zero_info(said)


def _index(label: int | str, names: Sequence[str]) -> int:
    """The index of a label that is given by index or name."""
    known = f"the labels are {', '.join(names)}"
    if isinstance(label, str) and label not in names:
        raise InputError(
            "protected_label", f"{label!r} is not a label", f"{did_you_mean(label, names)} {known}".strip()
        )
    if isinstance(label, int) and not 0 <= label < len(names):
        raise InputError("protected_label", f"{label} is not the index of a label, from 0", known)
    return names.index(label) if isinstance(label, str) else label


def _no_rows(problem: str, every: bool) -> InputError:
    """The error for a protected label without clean rows; ``every`` label may be protected, or one."""
    remedy = "give clean rows of every label" + (", or set protected_label" if every else "")
    return InputError("reference rows", f"{problem} to tune RAP's word on", remedy)


def _texts_by_label(victim: Victim, batches: Iterable[Batch]) -> dict[int, list[str]]:
    """The texts of each label; where a row has none, of the label that the victim predicts."""
    texts: dict[int, list[str]] = {}
    for batch in batches:
        labels = batch["original_label"]
        if (labels < 0).any():
            logits = plain_logits(victim.network, batch["input_ids"], batch["attention_mask"])
            labels = labels.where(labels >= 0, logits.argmax(dim=-1))
        for text, label in zip(batch["text"], labels.tolist(), strict=True):
            texts.setdefault(label, []).append(text)
    return texts


@torch.no_grad()
def _probabilities(victim: Victim, texts: Sequence[str]) -> Tensor:
    input_ids, mask = pad(token_ids(texts, victim.tokenizer, victim.max_length), victim.tokenizer)
    device = victim.network.device
    return plain_logits(victim.network, input_ids.to(device), mask.to(device)).float().softmax(dim=-1)
