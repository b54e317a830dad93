"""Predictions of a victim on texts, without a trainer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_backdoor.batch import Victim, batch_of_texts
from lightning_backdoor.errors import InputError
from lightning_backdoor.models.captures import plain_logits
from lightning_backdoor.models.divergence import count_not_finite, diverged_victim


class Predictions(NamedTuple):
    """The predictions of a victim.

    Attributes:
        labels: name of the predicted label of each text.
        probabilities: (texts, classes), float32, on the CPU: the probability of each label, in the order of the labels.
    """

    labels: list[str]
    probabilities: Tensor


@torch.no_grad()
def predict_texts(victim: Victim, texts: Sequence[str], labels: Sequence[str], batch_size: int) -> Predictions:
    """The predictions of a victim on texts, on the device of its network, whose mode is restored afterwards.

    Args:
        victim: a victim whose network is built.
        texts: the texts; those of similar length are read together.
        labels: names of the classes.
        batch_size: number of texts read at once.

    Raises:
        InputError: the batch size is not a number of texts.
        Diverged: a logit is NaN or infinite.
    """
    if not hasattr(batch_size, "__index__") or batch_size < 1:
        raise InputError("batch_size", f"{batch_size!r} is not a number of texts", "give at least 1")
    network = victim.network
    order = sorted(range(len(texts)), key=lambda position: len(texts[position]))
    probabilities = torch.zeros(len(texts), len(labels))
    training = [module for module in network.modules() if module.training]
    network.eval()
    try:
        for start in range(0, len(order), batch_size):
            positions = order[start : start + batch_size]
            batch = batch_of_texts([texts[position] for position in positions], victim.tokenizer, victim.max_length)
            ids, mask = (batch[name].to(network.device) for name in ("input_ids", "attention_mask"))
            logits = plain_logits(network, ids, mask).float()
            number = int(count_not_finite(logits))
            if number:
                raise diverged_victim(number, len(positions))
            probabilities[positions] = logits.softmax(dim=-1).cpu()
    finally:
        for module in training:
            module.training = True
    return Predictions([labels[index] for index in probabilities.argmax(dim=-1).tolist()], probabilities)
