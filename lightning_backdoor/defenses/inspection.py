"""The base class of inspections: defenses that judge whether a whole model is backdoored."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import torch

from lightning_backdoor.batch import Batch, Victim


class ModelVerdict(NamedTuple):
    """The result of an inspection of a model.

    Attributes:
        score: higher is more suspicious; finite, and comparable between models.
        suspected_label: index of the class to which a trigger seems to lead; None where no class is suspected.
        evidence: named numbers or texts that explain the score.
    """

    score: float
    suspected_label: int | None
    evidence: dict[str, float | int | str]


class Inspection(ABC):
    """Base class of inspections: judges a model by its behaviour on clean texts and on a stream of unlabelled texts.

    ``learn`` and ``calibrate`` are called before ``inspect``; the rows given to ``calibrate`` are given to neither of
    the other two methods. Every process calls all three on the same rows.

    Attributes:
        seed: seed of the inspection's own random choices; None takes the seed of the run.
    """

    seed: int | None = None

    @property
    def learns_from(self) -> Literal["reference", "trusted"]:
        """The clean rows that :meth:`learn` is given: the reference rows, or all trusted ones."""
        return "reference"

    def to(self, device: torch.device) -> None:  # noqa: B027 - most inspections hold no tensors
        """Moves the tensors that the inspection holds to the victim's device; does nothing by default."""

    def check_reference(self, labels: Sequence[int], classes: int) -> None:  # noqa: B027
        """Checks, before a victim is trained, that :meth:`learn` can use the clean rows; by default does nothing.

        Args:
            labels: of the rows that :meth:`learn` will be given.
            classes: number of classes of the victim.

        Raises:
            InputError: there are too few rows, or rows of too few classes.
        """

    def learn(  # noqa: B027 - most inspections learn nothing
        self, victim: Victim, clean_batches: Iterable[Batch]
    ) -> None:
        """Learns statistics from the clean rows of :attr:`learns_from`; does nothing by default."""

    def calibrate(  # noqa: B027
        self, victim: Victim, clean_batches: Iterable[Batch]
    ) -> None:
        """Sets thresholds on the clean threshold rows; does nothing by default."""

    @abstractmethod
    def inspect(self, victim: Victim, clean_batches: Iterable[Batch], stream: Iterable[Batch] = ()) -> ModelVerdict:
        """Judges the model; to be implemented by subclasses.

        Args:
            victim: the model to inspect, in evaluation mode.
            clean_batches: trusted clean texts: the selection and reference rows.
            stream: unlabelled texts that the model receives in use, an unknown part of them poisoned. Labels are -1,
                flags are False and spans are empty, also in poisoned rows.
        """
