"""The contract of an inspection: a defense that judges a whole model, backdoored or not."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import NamedTuple

import torch

from lightning_backdoor.batch import Batch, Victim


class ModelVerdict(NamedTuple):
    """What an inspection says of a model.

    Attributes:
        score: higher is more suspicious; finite, and comparable between models.
        suspected_label: index of the class to which a trigger seems to lead; None where nothing points to one.
        evidence: named numbers or texts that explain the score.
    """

    score: float
    suspected_label: int | None
    evidence: dict[str, float | int | str]


class Inspection(ABC):
    """Base of inspections: judges a model by its answers to clean texts and to a stream of unlabelled texts.

    ``learn`` and ``calibrate`` are called before ``inspect``; the rows of ``calibrate`` are given to neither of the
    others. Every process calls all three on the same rows.

    Attributes:
        seed: seed of the inspection's own random choices; None takes the seed of the run.
    """

    seed: int | None = None

    def to(self, device: torch.device) -> None:  # noqa: B027 - most inspections hold no tensors
        """Moves the tensors that the inspection holds to the victim's device; does nothing by default."""

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
            stream: texts that the model is asked about in use, an unknown part of them poisoned. Their labels are -1,
                their flags False and their spans empty, whatever they carry.
        """
