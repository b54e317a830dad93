"""The record by which a training-time defense tells the victim what it did to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from transformers import PreTrainedModel


class TrainingDefense(NamedTuple):
    """A training-time defense, as the victim keeps it in :attr:`TextClassifier.training_defense`.

    A checkpoint holds name and settings. It is loaded only under a defense with the same ones.

    Attributes:
        name: of the defense, such as ``MuScleLoRA``.
        settings: plain values (numbers, strings, lists) that decide the shape or the training of the network.
        merge: makes a plain network, without modules of the defense, that computes the same in evaluation; None where
            the network is plain already.
    """

    name: str
    settings: dict[str, Any]
    merge: Callable[[PreTrainedModel], PreTrainedModel] | None = None

    def __str__(self) -> str:
        settings = ", ".join(f"{name}={value}" for name, value in self.settings.items())
        return f"{self.name}({settings})"
