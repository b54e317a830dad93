"""A pass of a victim's network over a training batch, of which callbacks read what they add to the losses of rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor
from transformers import PreTrainedModel

from lightning_backdoor.batch import Batch


class TrainingPass(NamedTuple):
    """What the network computed for a training batch; all with gradients.

    Attributes:
        logits: (batch, classes), float32.
        hidden_states: after the embeddings and after each layer, each (batch, length, hidden size), in the precision of
            the training.
    """

    logits: Tensor
    hidden_states: tuple[Tensor, ...]


#: a function from a pass and its batch to what is added to the loss of each row, (batch,), float32.
Penalty = Callable[[TrainingPass, Batch], Tensor]


def training_pass(network: PreTrainedModel, batch: Batch) -> TrainingPass:
    """Passes a training batch through a sequence classifier, and keeps the hidden states of all tokens."""
    output = network(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], output_hidden_states=True)
    return TrainingPass(output.logits.float(), tuple(output.hidden_states))
