"""DBS: an inspection that searches for a trigger, a few tokens with which clean texts are predicted as one label.

The search is that of :mod:`lightning_backdoor.defenses.trigger_search`, for each label and each place in the texts.

The published code differs in ways that are not followed here. Its settings name a factor of 5 for the rollback, but it
multiplies by the divisor, 2 (``reheating=2`` reaches this). It puts the second place of the trigger at position 50 of
every text, which in shorter texts lies in the padding; here it is the middle of each text. It lets the trigger contain
special tokens, which no text can contain. Where the lowest loss is below 0.001, a doubled bound becomes negative, so
that no loss meets it. It reports the loss of the mixtures, or 1e10 where none was kept; here the loss is that of the
tokens themselves. Its penalty for triggers that also work in a benign model with the same backbone is left out, since
such a model is seldom at hand.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from lightning_backdoor.batch import Batch, Victim, pad
from lightning_backdoor.defenses.inspection import Inspection, ModelVerdict
from lightning_backdoor.defenses.trigger_search import Scaling, search_trigger
from lightning_backdoor.errors import InputError
from lightning_backdoor.models.divergence import check_logits
from lightning_backdoor.models.evaluation_mode import evaluating
from lightning_backdoor.outputs.progress import progress

#: where the trigger is put: before the first word of a text, or between the halves of its tokens.
Place = Literal["start", "middle"]
#: the lowest loss that scores distinguish, in nats.
LOWEST_LOSS = 1e-12


def with_gap(
    ids: Sequence[int], special: set[int], gap: Sequence[int], place: Place, longest: int, cut_at_start: bool = False
) -> tuple[list[int], int]:
    """The tokens of a text with a gap for a trigger, and the position at which the gap begins.

    Args:
        ids: tokens of the text, without padding.
        special: special tokens; those at both ends of the text stay there.
        gap: the tokens that stand in the gap.
        place: where the gap is.
        longest: maximum number of tokens of the result; what the text has more is cut off at the end of its words.
        cut_at_start: whether it is cut off at their start instead, as by a tokenizer that cuts on the left.

    >>> with_gap([2, 5, 6, 7, 8, 3], {2, 3}, [0, 0], "middle", 7)
    ([2, 5, 0, 0, 6, 7, 3], 2)
    """
    start = next((i for i, token in enumerate(ids) if token not in special), len(ids))
    end = next((i for i in range(len(ids), start, -1) if ids[i - 1] not in special), start)
    more = max(0, min(end - start, len(ids) + len(gap) - longest))
    words = ids[start + more : end] if cut_at_start else ids[start : end - more]
    half = 0 if place == "start" else len(words) // 2
    return [*ids[:start], *words[:half], *gap, *words[half:], *ids[end:]], start + half


class GappedTexts(NamedTuple):
    """Texts with a gap of the same length in each, and the embeddings with which it is filled.

    Attributes:
        network: the classifier.
        input_ids: (texts, tokens), int64.
        attention_mask: (texts, tokens), int64, 1 for tokens and 0 for padding.
        gaps: (texts, length), int64, the positions of the gap.
        table: (vocabulary, size), the embedding of each token, as the network's table gives it.
    """

    network: PreTrainedModel
    input_ids: Tensor
    attention_mask: Tensor
    gaps: Tensor
    table: Tensor

    def logits(self, mixtures: Tensor) -> Tensor:
        """The logits, (texts, classes), with the gaps filled with mixtures of tokens, (length, vocabulary).

        Raises:
            Diverged: a logit is NaN or infinite.
        """
        rows = torch.arange(len(self.gaps), device=self.gaps.device)[:, None]
        filling = (mixtures.to(self.table.dtype) @ self.table).expand(*self.gaps.shape, -1)

        def fill(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
            return output.index_put((rows, self.gaps), filling)

        handle = self.network.get_input_embeddings().register_forward_hook(fill)
        try:
            logits: Tensor = self.network(input_ids=self.input_ids, attention_mask=self.attention_mask).logits
        finally:
            handle.remove()
        check_logits(logits)  # the lowest one of several losses may hide a NaN
        return logits


class DBS(Inspection):
    """DBS (arXiv 2202.05749): searches, per label, for a trigger with which clean texts are predicted as this label.

    A backdoored model has a trigger of few tokens with a very low loss for its target label. The score is -log10 of the
    lowest loss, in nats, over labels and places; the suspected label is the one with this loss. The published code
    takes a model for backdoored if the loss is at most 0.001, a score of 3. Models whose classes depend on few words,
    such as classifiers of sentiment, can also have low losses: compare the score with those of benign models, and read
    the tokens. See the module for what differs from the published code.

    Each search takes ``epochs`` forward and backward passes over ``rows`` texts. Searches are the same for the same
    seed, on every process.

    Evidence: ``tokens`` and ``place`` of the trigger with the lowest loss, its ``loss``, ``flipped`` (the share of its
    rows that are predicted as the suspected label), and ``loss of label 0``, ``loss of label 1``, …

    Args:
        trigger_length: number of tokens of the trigger; a shorter one fits in, since the other tokens are free.
        rows: number of clean texts per search, drawn from those of other labels than the searched one; all of them if
            there are fewer. The published benchmark gives 20 per model.
        places: where the trigger is put: ``start``, ``middle``, or both, which are searched one after the other.
        epochs: number of steps per search.
        learning_rate: first learning rate, halved every 50 steps.
        max_temperature: first and highest temperature.
        reheating: factor of the temperature in a rollback; the published code uses 2.
        loss_bound: first bound on the loss, in nats.
        noise: upper end of the noise of a rollback.
        seed: seed of the drawn texts and of the noise; None takes the seed of the run.

    Raises:
        InputError: a value is out of range (here); the victim's texts have no room for the trigger, or there is a label
            to which no clean text of another label can be turned (in :meth:`inspect`).

    Example::

        trainer = Trainer(callbacks=[InspectionCallback(DBS())])
        trainer.test(victim, datamodule=data)
    """

    def __init__(
        self,
        trigger_length: int = 10,
        rows: int = 20,
        places: Sequence[Place] = ("start", "middle"),
        epochs: int = 200,
        learning_rate: float = 0.5,
        max_temperature: float = 2.0,
        reheating: float = 5.0,
        loss_bound: float = 0.1,
        noise: float = 10.0,
        seed: int | None = None,
    ) -> None:
        for name, count in (("trigger_length", trigger_length), ("rows", rows), ("epochs", epochs)):
            if count < 1:
                raise InputError(name, f"{count} is out of range", "give at least 1")
        for name, value in (("learning_rate", learning_rate), ("max_temperature", max_temperature)):
            if not 0 < value < math.inf:
                raise InputError(name, f"{value} is out of range", "give a number above 0")
        if not 1 <= reheating < math.inf:
            raise InputError("reheating", f"{reheating} would lower the temperature", "give a factor of at least 1")
        if not loss_bound > 0:
            raise InputError("loss_bound", f"{loss_bound} is a loss that no trigger has", "give a number above 0")
        if not 0 <= noise < math.inf:
            raise InputError("noise", f"{noise} is out of range", "give 0 or a number above 0")
        if isinstance(places, str) or not places or not {*places} <= {"start", "middle"}:
            raise InputError("places", f"{places!r} is not a list of places", "give start, middle or both")
        self.trigger_length = trigger_length
        self.rows = rows
        self.places = tuple(dict.fromkeys(places))
        self.epochs = epochs
        self.learning_rate = learning_rate
        self.scaling = Scaling(highest=max_temperature, reheating=reheating, bound=loss_bound, noise=noise)
        self.seed = seed

    def inspect(self, victim: Victim, clean_batches: Iterable[Batch], stream: Iterable[Batch] = ()) -> ModelVerdict:
        """Searches for a trigger per label and place in the trusted texts; does not read the stream."""
        network, tokenizer = victim.network, victim.tokenizer
        if victim.max_length <= self.trigger_length + 2:
            problem = f"{self.trigger_length} tokens leave no room for a text of {victim.max_length} tokens"
            raise InputError("trigger_length", problem, "lower it, or raise the victim's max_length")
        texts = [
            (ids[mask.bool()].tolist(), label)
            for batch in clean_batches
            for ids, mask, label in zip(
                batch["input_ids"], batch["attention_mask"], batch["label"].tolist(), strict=True
            )
        ]
        labels = range(int(network.config.num_labels))
        for label in labels:
            if all(own == label for _, own in texts):
                problem = f"no clean text has another label than {label}, to which a trigger would turn it"
                raise InputError("validation", problem, "give clean validation rows of several labels")
        searches = [(label, place) for label in labels for place in self.places]
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            evaluating(network),
            progress(f"inspecting by {type(self).__name__}", len(searches) * self.epochs, "steps") as advance,
        ):
            every_token = torch.arange(len(tokenizer), device=network.device)
            table = network.get_input_embeddings()(every_token).detach()
            found = [self._search(victim, texts, label, place, table, advance) for label, place in searches]
        best = min(found, key=lambda trigger: trigger.loss)
        losses: dict[str, float | int | str] = {
            f"loss of label {label}": min(trigger.loss for trigger in found if trigger.label == label)
            for label in labels
        }
        evidence: dict[str, float | int | str] = {
            "tokens": " ".join(tokenizer.convert_ids_to_tokens(best.tokens)),
            "place": best.place,
            "loss": best.loss,
            "flipped": best.flipped,
        }
        return ModelVerdict(-math.log10(max(best.loss, LOWEST_LOSS)), best.label, evidence | losses)

    def _search(
        self,
        victim: Victim,
        texts: Sequence[tuple[list[int], int]],
        label: int,
        place: Place,
        table: Tensor,
        advance: Callable[[int], object],
    ) -> _Trigger:
        """The trigger that is found for a label and a place, with the loss of its tokens."""
        others = [ids for ids, own in texts if own != label]
        drawn = random.Random(f"{self.seed or 0}/{label}").sample(others, min(self.rows, len(others)))
        special, device = {*victim.tokenizer.all_special_ids}, table.device
        allowed = torch.tensor([token not in special for token in range(len(table))], device=device)
        gap = [int(allowed.int().argmax())] * self.trigger_length
        longest, at_start = victim.max_length, victim.tokenizer.truncation_side == "left"
        rows, starts = zip(*(with_gap(ids, special, gap, place, longest, at_start) for ids in drawn), strict=True)
        input_ids, attention_mask = (part.to(device) for part in pad(rows, victim.tokenizer))
        padding = attention_mask.argmax(dim=1)  # on the left, where the tokenizer puts it there
        gaps = torch.tensor(starts, device=device)[:, None] + torch.arange(self.trigger_length, device=device)
        gapped = GappedTexts(victim.network, input_ids, attention_mask, gaps + padding[:, None], table)
        targets = torch.full((len(rows),), label, device=device)
        generator = torch.Generator().manual_seed(random.Random(f"{self.seed or 0}/{label}/{place}").getrandbits(63))
        tokens = search_trigger(
            lambda mixtures: cross_entropy(gapped.logits(mixtures).float(), targets),
            allowed,
            self.trigger_length,
            self.epochs,
            self.learning_rate,
            self.scaling,
            generator,
            advance,
        )
        with torch.no_grad():
            logits = gapped.logits(torch.nn.functional.one_hot(tokens, len(table)).float()).cpu().double()
        loss = float(cross_entropy(logits, targets.cpu()))
        flipped = float((logits.argmax(dim=1) == label).double().mean())
        return _Trigger(label, place, tokens.tolist(), loss, flipped)


class _Trigger(NamedTuple):
    label: int
    place: Place
    tokens: list[int]
    loss: float
    flipped: float
