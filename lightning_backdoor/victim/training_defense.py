"""The record that a training-time defense leaves in the victim: name, settings and how to merge."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from transformers import PreTrainedModel

#: the weights in the exported folder of a victim whose network cannot be turned into a plain one.
UNMERGED = "network.safetensors"


class TrainingDefense(NamedTuple):
    """The record of a training-time defense, stored in :attr:`TextClassifier.training_defense`.

    A checkpoint contains name and settings. It is loaded only under a defense with the same name and settings.

    Attributes:
        name: name of the defense, such as ``MuScleLoRA``.
        settings: plain values (numbers, strings, lists) that decide the shape or the training of the network.
        merge: function from the network to a plain network, without modules of the defense, that computes the same in
            evaluation; None if the network is already plain.
        unmergeable: why the network cannot be turned into a plain one, such as ``adapters cannot be merged into
            weights``; empty if it can. Such a victim is tested by its checkpoints under the same defense.
    """

    name: str
    settings: dict[str, Any]
    merge: Callable[[PreTrainedModel], PreTrainedModel] | None = None
    unmergeable: str = ""

    def __str__(self) -> str:
        settings = ", ".join(f"{name}={value}" for name, value in self.settings.items())
        return f"{self.name}({settings})"
