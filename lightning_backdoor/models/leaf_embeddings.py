"""Word embeddings as a leaf of the graph, for gradients with respect to them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel


@contextmanager
def word_embeddings_as_leaf(network: PreTrainedModel) -> Iterator[list[Tensor]]:
    """Makes the output of the word-embedding table a leaf of the graph, without positions or anything added.

    Passes in other threads are not changed, so that several threads may use a network at once, each in a block of its
    own.

    Yields:
        The leaf of each pass within the block, (batch, length, hidden size).
    """
    leaves: list[Tensor] = []
    thread = threading.get_ident()

    def detach(module: nn.Module, inputs: Any, output: Tensor) -> Tensor | None:
        if threading.get_ident() != thread:
            return None
        leaves.append(output.detach().requires_grad_())
        return leaves[-1]

    handle = network.get_input_embeddings().register_forward_hook(detach)
    try:
        yield leaves
    finally:
        handle.remove()
