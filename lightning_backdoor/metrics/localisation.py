"""Whether a defense points at the trigger."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lightning_backdoor.batch import Spans
from lightning_backdoor.metrics.share import Share


class Localisation(Share):
    """Share of all poisoned texts in which the highest-scoring token lies in the trigger's span.

    Texts without spans (paraphrase attacks) are left out: there it is undefined, and NaN where no text has any.

    >>> metric = Localisation()
    >>> metric.update([(2, 4), None], [[(2, 4)], [(0, 2)]])
    >>> metric.compute()
    tensor(0.5000)
    """

    def update(self, top: Sequence[tuple[int, int] | None], triggers: Sequence[Spans]) -> None:
        """Adds poisoned texts: the characters of each one's top token, None where there is none, and its trigger."""
        pairs = [(token, spans) for token, spans in zip(top, triggers, strict=True) if spans]
        hit = [
            token is not None and any(start < token[1] and token[0] < end for start, end in spans)
            for token, spans in pairs
        ]
        flags = torch.tensor(hit, dtype=torch.bool, device=self.device)
        self.count(flags, torch.ones_like(flags))
