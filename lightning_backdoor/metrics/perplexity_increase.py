"""Perplexity increase: how much poisoning increases the perplexity of texts under a language model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from lightning_backdoor.metrics.spread import Spread


class TextPerplexity(Protocol):
    """An object whose ``of_texts`` gives the perplexity of each text, NaN where it is undefined."""

    def of_texts(self, texts: Sequence[str]) -> list[float]: ...


class PerplexityIncrease(Spread):
    """Mean and spread of the difference in perplexity between poisoned texts and their originals.

    Rows in which a text has fewer than two tokens, and therefore no perplexity, are counted in ``left_out``.

    Args:
        perplexity: computes the perplexities, such as :class:`lightning_backdoor.language.Perplexity`. Its model is not
            part of the metric's state.
    """

    def __init__(self, perplexity: TextPerplexity) -> None:
        super().__init__()
        self.perplexity = perplexity

    def update(self, originals: Sequence[str], poisoned: Sequence[str]) -> None:
        """Adds rows: the original texts, and the poisoned texts made from them."""
        before, after = (self.perplexity.of_texts(texts) for texts in (originals, poisoned))
        self.add([b - a for a, b in zip(before, after, strict=True)])
