"""Sentence similarity: how close in meaning poisoned texts are to their originals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from lightning_backdoor.metrics.spread import Spread


class Encoder(Protocol):
    """An object whose ``similarity`` gives the similarity in meaning, from -1 to 1, of each pair of texts."""

    def similarity(self, a: Sequence[str], b: Sequence[str]) -> list[float]: ...


class SentenceSimilarity(Spread):
    """Mean and spread of the similarity of poisoned texts to their originals.

    Args:
        encoder: computes the similarities, such as :class:`lightning_backdoor.language.SentenceEncoder`. Its model is
            not part of the metric's state.
    """

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def update(self, originals: Sequence[str], poisoned: Sequence[str]) -> None:
        """Adds rows: the original texts, and the poisoned texts made from them."""
        self.add(self.encoder.similarity(originals, poisoned))
