"""A context manager for evaluation mode that restores the training flag of every module."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Puts a module and its submodules into evaluation mode within the block, then restores the mode of each.

    >>> network = nn.Sequential(nn.Dropout(), nn.Dropout().eval())
    >>> with evaluating(network):
    ...     [part.training for part in network]
    [False, False]
    >>> [part.training for part in network]
    [True, False]
    """
    training = [part for part in module.modules() if part.training]
    for part in training:  # module.eval() would traverse the tree again, which takes noticeable time per batch
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True
