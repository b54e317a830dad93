"""BadActs (arXiv 2405.11227): neurons that leave the range of clean texts, and a network in which they cannot.

A trigger drives the hidden states of the token that the head reads out of the range that clean texts keep. The score of
a text is the share of its neurons outside of this range. Flagged texts are answered by the victim with its states
clipped to bounds that were optimised on clean texts (``activation_clipping.py``).

The published program differs in these ways: bounds are judged on the rows they were fitted on, and are optimised again
without a limit (here: judged on rows held out, in at most three runs); the victim's own weights collect gradients;
and its ``detect`` asks for the attack's target label, which it does not use. In the program a low score is suspicious;
here the sign is turned. As published, bounds start at 1 and 1 - e for every neuron, which suits states of about unit
scale, such as those of BERT, whose layers end in a normalisation; ``start="statistics"`` suits others, as in most
decoders.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import ClassVar, Literal

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor

from lightning_backdoor.batch import Batch, Victim, pad, token_ids
from lightning_backdoor.defenses.activation_clipping import (
    RESTART,
    Inputs,
    clipped_logits,
    optimised_bounds,
    published_start,
    start_around,
)
from lightning_backdoor.defenses.defense import Scores
from lightning_backdoor.defenses.hidden_states import Reference, StateDefense, check_count
from lightning_backdoor.errors import InputError
from lightning_backdoor.models.captures import plain_logits

#: rows per batch of the optimisation, as published, and share of rows by which the bounds are judged.
BATCH_SIZE, HELD_OUT = 32, 0.2


class BadActs(StateDefense):
    """BadActs (arXiv 2405.11227): flags texts whose neurons leave the range of clean texts, and clips their states.

    The neurons of a text are the entries of the readout token's hidden states in all layers, the embeddings left out.
    With mean and standard deviation of each neuron on clean rows, a text's score is the share of its neurons outside of
    ``mean ± delta * std``. It moves in steps of one neuron, so that scores may be tied.

    Flagged texts are answered by the logits of the victim with its states clipped after every layer. The bounds are
    optimised in ``learn``, by ``epochs`` passes, forward and backward, over the reference rows that the victim predicts
    correctly, again in each evaluation; rejecting costs none of this.

    Args:
        delta: width of the range in standard deviations; the published detection script takes 3.
        epochs: passes of the optimisation; 0 optimises nothing, and flagged texts are rejected.
        start: where bounds start: ``published``, at 1 and 1 - e for every neuron, or ``statistics``, around the mean of
            each neuron over the tokens of clean rows, at one standard deviation.
        fpr: share of clean texts, above 0 and below 1, that the threshold may flag.
        seed: seed of the order and the split of the rows in the optimisation; None takes the seed of the run.

    Raises:
        InputError: a value is out of range.

    Example::

        defense = BadActs(epochs=0)
        defense.learn(victim, clean_reference_batches)
        defense.calibrate(victim, clean_threshold_batches)
        scores = defense.score(victim, batch)  # scores.text: (batch,)
    """

    learned: ClassVar = ("mean", "std", "lower", "upper")
    mean: Tensor
    std: Tensor
    lower: Tensor
    upper: Tensor

    def __init__(
        self,
        delta: float = 2.0,
        epochs: int = 50,
        start: Literal["published", "statistics"] = "published",
        fpr: float = 0.05,
        seed: int | None = None,
    ) -> None:
        super().__init__(fpr, seed)
        if not 0 < delta < math.inf:
            raise InputError("delta", f"{delta} standard deviations are not a range", "give a number above 0")
        if epochs < 0:
            raise InputError("epochs", f"{epochs} is not a number of passes", "give 0 or more")
        if start not in ("published", "statistics"):
            raise InputError("start", f"{start!r} is not where bounds start", "give published or statistics")
        self.delta = delta
        self.epochs = epochs
        self.start = start

    def check_reference(self, labels: Sequence[int], classes: int) -> None:
        """Checks that there are more rows than classes."""
        check_count(labels, classes)

    def fit(self, victim: Victim, reference: Reference) -> dict[str, Tensor]:
        """Mean and standard deviation of each neuron, and optimised bounds; all (layers, hidden size)."""
        found = self.fit_states(reference.states)
        if self.epochs:
            found["lower"], found["upper"] = self._bounds(victim, reference)
        return found

    def fit_states(self, states: Tensor) -> dict[str, Tensor]:
        """Mean and standard deviation of each neuron of states, (layers + 1, rows, hidden size), float64."""
        return {"mean": states[1:].mean(dim=1), "std": states[1:].std(dim=1, correction=0)}

    def score_states(self, states: Tensor) -> Tensor:
        """The share of neurons outside of the range, (batch,)."""
        reach = self.delta * self.std[:, None]
        outside = (states[1:] < self.mean[:, None] - reach) | (states[1:] > self.mean[:, None] + reach)
        return outside.to(states).mean(dim=(0, 2))

    @torch.no_grad()
    def purify(self, victim: Victim, batch: Batch, flagged: Tensor, scores: Scores) -> Tensor | None:
        """The logits of the flagged texts under clipped states; None, which rejects them, where no bounds are learned.

        Returns:
            (batch, classes), 0 in other rows.
        """
        if not self.epochs:
            return None
        inputs = batch["input_ids"][flagged], batch["attention_mask"][flagged]
        found = clipped_logits(victim.network, inputs, self.lower, self.upper)
        logits = found.new_zeros(len(flagged), found.shape[1])
        logits[flagged] = found
        return logits

    @torch.inference_mode(False)  # tensors of inference mode cannot be used with gradients
    def _bounds(self, victim: Victim, reference: Reference) -> tuple[Tensor, Tensor]:
        """The bounds that are optimised on the rows that the victim predicts correctly."""
        network, seed = victim.network, self.seed or 0
        right = _predictions(victim, reference.texts) == reference.labels
        rows = reference.take(right.nonzero().flatten().tolist())
        if len(rows.texts) < 3:  # one to fit, and two to judge by
            problem = f"the victim predicts {len(rows.texts)} of {len(reference.texts)} clean rows correctly"
            raise InputError("reference rows", problem, "give more, or epochs 0, which optimises no clipping bounds")
        fitted, judged = ([inputs for _, inputs in _batches(victim, part.texts)] for part in rows.split(HELD_OUT, seed))
        start = published_start(network) if self.start == "published" else start_around(network, fitted)
        bounds, agreement = optimised_bounds(network, fitted, judged, start, self.epochs, seed)
        if agreement < RESTART:
            rank_zero_warn(
                f"BadActs: with its states clipped, the victim keeps its prediction on {100 * agreement:.0f} % of clean"
                f" rows that were held out, less than {100 * RESTART:.0f} %: its answers cost accuracy"
            )
        return bounds.limits()


def _batches(victim: Victim, texts: Sequence[str]) -> Iterator[tuple[list[int], Inputs]]:
    """Batches of texts of similar length, on the victim's device, with the numbers of their texts."""
    ids = token_ids(texts, victim.tokenizer, victim.max_length)
    order = sorted(range(len(ids)), key=lambda row: len(ids[row]))
    for start in range(0, len(order), BATCH_SIZE):
        part = order[start : start + BATCH_SIZE]
        input_ids, mask = pad([ids[i] for i in part], victim.tokenizer)
        yield part, (input_ids.to(victim.network.device), mask.to(victim.network.device))


@torch.no_grad()
def _predictions(victim: Victim, texts: Sequence[str]) -> Tensor:
    predictions = torch.empty(len(texts), dtype=torch.long)
    for rows, inputs in _batches(victim, texts):
        predictions[rows] = plain_logits(victim.network, *inputs).argmax(dim=-1).cpu()
    return predictions
