"""Evaluation mode for a while: dropout off, and afterwards every module's training flag as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Puts a module and all modules in it into evaluation mode within the block, and restores each one's own mode.

    >>> network = nn.Sequential(nn.Dropout(), nn.Dropout().eval())
    >>> with evaluating(network):
    ...     [part.training for part in network]
    [False, False]
    >>> [part.training for part in network]
    [True, False]
    """
    training = [part for part in module.modules() if part.training]
    for part in training:  # module.eval() would walk the tree again, which takes noticeable time per batch
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True
