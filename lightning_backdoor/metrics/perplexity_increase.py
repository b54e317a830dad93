"""How much stranger poisoning makes texts to a language model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from lightning_backdoor.metrics.spread import Spread


class TextPerplexity(Protocol):
    """What gives the perplexity of each text, NaN where it has none."""

    def of_texts(self, texts: Sequence[str]) -> list[float]: ...


class PerplexityIncrease(Spread):
    """Mean and spread of the perplexity of poisoned texts less that of their originals.

    Rows in which one of the two has none, being of fewer than two tokens, are ``left_out``.

    Args:
        perplexity: such as :class:`lightning_backdoor.language.Perplexity`; in no checkpoint.
    """

    def __init__(self, perplexity: TextPerplexity) -> None:
        super().__init__()
        self.perplexity = perplexity

    def update(self, originals: Sequence[str], poisoned: Sequence[str]) -> None:
        """Adds rows: each original and what became of it."""
        before, after = (self.perplexity.of_texts(texts) for texts in (originals, poisoned))
        self.add([b - a for a, b in zip(before, after, strict=True)])
