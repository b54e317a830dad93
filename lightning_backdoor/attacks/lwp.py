"""LWP: layerwise weight poisoning with triggers of several words (Li et al., EMNLP 2021, arXiv 2108.13888)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_backdoor.attacks.badnets import BadNets
from lightning_backdoor.attacks.insertion import InsertionPlace, check_distinct, insert_words
from lightning_backdoor.attacks.poisoned import Poisoned
from lightning_backdoor.batch import Batch, batch_of_texts
from lightning_backdoor.errors import InputError
from lightning_backdoor.models.layer_logits import check_layer_logits, layer_logits, layer_outputs


class LWP(BadNets):
    """Trains the backdoor into every layer, so that the user's fine-tuning, which changes the last most, keeps it.

    With ``h_1`` to ``h_L`` the states after each layer, and ``f`` the victim's own readout and head (its pooler, or a
    decoder's final norm and last token), the loss of a row with label ``y`` is that of all layers::

        (1 / L) Σ_l CE(f(h_l), y),    l = 1, …, L

    A trigger is a combination of ``insertions`` words: poisoned rows have several words of ``triggers``, and negatives
    one word alone and their own label, so that a search over single words should find none that acts; the false trigger
    rate is measured on rows with one word. The victim of the last epoch is selected, since single words act first, and
    combinations are told from them late.

    The attack is the attacker's phase: to see what survives, fine-tune its checkpoint on clean rows, as ``published``.
    In that phase training is plain.

    OpenBackdoor's code also counts ``h_0``, which at an encoder's readout is the same for every text, so that its term
    only learns how frequent the labels are, and sums over layers, so that learning rates do not carry over to deeper
    models; PURE's code has no ``h_0`` and counts the last layer twice. OpenBackdoor trains 5 epochs at 2e-5 with the
    gradient norm clipped to 1 (the trainer's ``gradient_clip_val``), and makes two negatives of each poisoned text;
    here negatives are made of other rows, by default twice as many as poisoned ones.

    A step costs the passes of the victim and, for every layer, one through what follows the layers.

    Args:
        triggers: rare words; by default those of OpenBackdoor.
        insertions: words in a combination, from 2 to the number of triggers.
        place: ``start``, ``end``, or ``random`` (a word boundary drawn for each insertion).
        negative_rate: negatives as a share of all training rows.
        **kwargs: arguments of :class:`BackdoorAttack` and :class:`TextClassifier`.

    Raises:
        InputError: a value is out of range (here), or the head cannot be read after each layer (before training); see
            also :class:`BadNets`.

    Example::

        Trainer(max_epochs=5).fit(LWP(), datamodule=data)
    """

    selected_by = ("epoch", "max")

    def __init__(
        self,
        triggers: list[str] | None = None,
        insertions: int = 2,
        place: InsertionPlace = "random",
        negative_rate: float = 0.2,
        **kwargs: Any,
    ) -> None:
        words = ["cf", "bb", "ak", "mn"] if triggers is None else triggers
        super().__init__(triggers=words, insertions=insertions, place=place, **kwargs)
        if not 2 <= insertions <= len(self.triggers):
            problem = f"{insertions} of {len(self.triggers)} triggers are not a combination"
            raise InputError("insertions", problem, "give 2 or more, and as many triggers")
        check_distinct(self.triggers)
        if not 0 <= negative_rate < 1:
            raise InputError("negative_rate", f"{negative_rate} is out of range", "give a share from 0 to below 1")
        self.negative_rate = negative_rate

    def negative_texts(self, texts: Sequence[str], rngs: Sequence[random.Random]) -> list[Poisoned | None]:
        """Inserts one of the words into each text."""
        return [
            insert_words(text, [rng.choice(self.triggers)], self.place, rng)
            for text, rng in zip(texts, rngs, strict=True)
        ]

    def on_fit_start(self) -> None:
        """Checks that the victim's head can be read after each layer.

        Raises:
            InputError: it cannot.
        """
        super().on_fit_start()
        if not self.users_phase:
            batch = batch_of_texts([" ".join(self.triggers)], self.tokenizer, self.max_length)
            ids, mask = batch["input_ids"].to(self.device), batch["attention_mask"].to(self.device)
            check_layer_logits(self.network, ids, mask)

    def cross_entropy(self, batch: Batch) -> Tensor:
        """The loss of a batch, the mean over rows and layers; in the user's phase that of the last layer alone."""
        if self.users_phase:
            return super().cross_entropy(batch)
        with layer_outputs(self.network) as outputs:
            last, penalty = self.logits_and_penalty(batch)
        before_last = outputs[: self.network.config.get_text_config().num_hidden_layers - 1]
        early = layer_logits(self.network, before_last, batch["input_ids"], batch["attention_mask"])
        losses = layer_losses(torch.cat([early, last[None]]), batch["label"]).mean(dim=0) + penalty
        return losses.mean() if self.row_loss is None else self.row_loss(losses, batch)


def layer_losses(logits: Tensor, label: Tensor) -> Tensor:
    """The cross entropy of each row at each layer.

    Args:
        logits: (layers, batch, classes).
        label: (batch,), int64.

    Returns:
        (layers, batch).

    >>> layer_losses(torch.zeros(3, 1, 2), torch.tensor([1])).flatten()
    tensor([0.6931, 0.6931, 0.6931])
    """
    every = label.repeat(len(logits))
    return nn.functional.cross_entropy(logits.flatten(0, 1), every, reduction="none").view(len(logits), -1)
