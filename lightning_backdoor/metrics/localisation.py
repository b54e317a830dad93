"""Localisation: the share of poisoned texts whose highest-scoring token overlaps the trigger."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lightning_backdoor.batch import Spans
from lightning_backdoor.metrics.share import Share


class Localisation(Share):
    """Share of poisoned texts in which the highest-scoring token overlaps the trigger.

    Texts whose trigger has no spans (paraphrases) are left out; NaN where no text has spans.

    >>> metric = Localisation()
    >>> metric.update([(2, 4), None], [[(2, 4)], [(0, 2)]])
    >>> metric.compute()
    tensor(0.5000)
    """

    def update(self, top: Sequence[tuple[int, int] | None], triggers: Sequence[Spans]) -> None:
        """Adds poisoned texts.

        Args:
            top: per text, the characters ``[start, end)`` of its highest-scoring token; None if no token has a score.
            triggers: per text, the spans of its trigger.
        """
        pairs = [(token, spans) for token, spans in zip(top, triggers, strict=True) if spans]
        hits = [
            token is not None and any(start < token[1] and token[0] < end for start, end in spans)
            for token, spans in pairs
        ]
        flags = torch.tensor(hits, dtype=torch.bool, device=self.device)
        self.count(flags, torch.ones_like(flags))
