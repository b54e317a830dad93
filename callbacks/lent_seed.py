"""The run's seed, lent to a defense or an inspection that has none."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback

from lightning_backdoor.callbacks.shared import run_seed
from lightning_backdoor.defenses.defense import Defense
from lightning_backdoor.defenses.inspection import Inspection


class LendsSeed(Callback):
    """Base class of callbacks that run a defense: where it has no seed, it has that of the run until the run ends.

    It is left without a seed, also after an error, so that it has the seed of each run in which it is used.
    """

    _lent_to: Defense | Inspection | None = None

    def lend_seed(self, algorithm: Defense | Inspection) -> None:
        """Gives the algorithm the run's seed if it has no seed; to be called in ``setup``."""
        self._take_back()  # a run may have ended without either hook
        if algorithm.seed is None:
            algorithm.seed, self._lent_to = run_seed(), algorithm

    def teardown(self, *args: Any, **kwargs: Any) -> None:
        """Takes the seed back."""
        self._take_back()

    def on_exception(self, *args: Any, **kwargs: Any) -> None:
        """Takes the seed back."""
        self._take_back()

    def _take_back(self) -> None:
        if self._lent_to is not None:
            self._lent_to.seed = None
        self._lent_to = None
