"""The contract of a defense that judges a whole model: is there a backdoor in it?"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import NamedTuple

from lightning_backdoor.batch import Batch, Victim


class ModelVerdict(NamedTuple):
    """What an inspection found.

    Attributes:
        score: higher is more suspicious; finite, and comparable between models.
        suspected_label: index of the class that a trigger seems to lead to; None where nothing points at one.
        evidence: named numbers or texts that explain the score.
    """

    score: float
    suspected_label: int | None
    evidence: dict[str, float | int | str]


class Inspection(ABC):
    """Judges a model by its answers to clean texts and, where there is one, to a stream of unlabelled texts.

    ``learn`` and ``calibrate`` are called before ``inspect``, each with clean rows that the others do not see. Every
    process calls all three on the same rows.
    """

    def learn(  # noqa: B027 - most inspections learn nothing
        self, victim: Victim, clean_batches: Iterable[Batch]
    ) -> None:
        """Takes statistics from the clean reference rows; does nothing by default."""

    def calibrate(  # noqa: B027
        self, victim: Victim, clean_batches: Iterable[Batch]
    ) -> None:
        """Sets thresholds on the clean threshold rows; does nothing by default."""

    @abstractmethod
    def inspect(self, victim: Victim, clean_batches: Iterable[Batch], stream: Iterable[Batch] = ()) -> ModelVerdict:
        """Judges the model.

        Args:
            victim: in evaluation mode.
            clean_batches: trusted clean texts: the selection and reference rows.
            stream: texts that the model is asked about in use, an unknown part of them poisoned; their labels and
                flags must not be read.
        """
