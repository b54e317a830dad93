"""Word embeddings as a leaf of the graph, for gradients with respect to them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel


@contextmanager
def word_embeddings_as_leaf(network: PreTrainedModel) -> Iterator[list[Tensor]]:
    """Makes the output of the word-embedding table a leaf of the graph, without positions or anything added.

    Yields:
        The leaf of each pass within the block, (batch, length, hidden size).
    """
    leaves: list[Tensor] = []

    def detach(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        leaves.append(output.detach().requires_grad_())
        return leaves[-1]

    handle = network.get_input_embeddings().register_forward_hook(detach)
    try:
        yield leaves
    finally:
        handle.remove()
