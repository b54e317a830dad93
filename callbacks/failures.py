"""The failure of one of several defenses in a test: it is raised when the others have finished."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning_utilities.core.rank_zero import rank_zero_warn

from lightning_backdoor.callbacks.processes import of_all_processes
from lightning_backdoor.errors import InputError, reason


class FailsAlone(Callback):
    """Base class of callbacks that run a defense, of which a test may have several.

    If one of several fails in a test, it does nothing more, the others go on and write their results, and the error is
    raised at the end of the test, on all processes, none of which waits for another in vain. Outside of a test, and
    alone in a single process, it is raised at once.

    Attributes:
        name: prefix of logged names.
        failure: the error with which the callback failed in this test; None if it has not failed.
    """

    name = ""
    failure: Exception | None = None

    @contextmanager
    def failing_alone(self, trainer: Trainer) -> Iterator[None]:
        """Keeps an error of the block until the end of the test, if there are other defenses or processes."""
        try:
            yield
        except Exception as error:
            defenses = [callback for callback in trainer.callbacks if isinstance(callback, FailsAlone)]  # type: ignore[attr-defined]
            if not trainer.testing or (len(defenses) == 1 and trainer.world_size == 1):
                raise
            self.failure = error
            rank_zero_warn(f"{self.name or type(self).__name__} failed, and the test goes on: {reason(error, 200)}")

    def failed_anywhere(self, trainer: Trainer) -> bool:
        """Whether the callback has failed in any process, whose error is then its own; every process must call it."""
        own = self.failure
        told = own if own is None or isinstance(own, InputError) else RuntimeError(reason(own, 500))  # can be sent
        self.failure = own or next(filter(None, of_all_processes(trainer, [told])), None)
        return self.failure is not None

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Raises the error with which the callback failed."""
        if self.failure is not None:
            raise self.failure
