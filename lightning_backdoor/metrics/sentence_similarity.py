"""How much of the meaning poisoning keeps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from lightning_backdoor.metrics.spread import Spread


class Encoder(Protocol):
    """What tells how close texts are in meaning."""

    def similarity(self, a: Sequence[str], b: Sequence[str]) -> list[float]: ...


class SentenceSimilarity(Spread):
    """Mean and spread of the similarity of poisoned texts to their originals.

    Args:
        encoder: such as :class:`lightning_backdoor.language.similarity.SentenceEncoder`; in no checkpoint.
    """

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def update(self, originals: Sequence[str], poisoned: Sequence[str]) -> None:
        """Adds rows: each original and what became of it."""
        self.add(self.encoder.similarity(originals, poisoned))
