"""A callback that repairs a published victim by fine-pruning: pruning of dormant units, then fine-tuning."""

from __future__ import annotations

from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn
from torch import nn

from lightning_backdoor.callbacks.repair import PruningRepair
from lightning_backdoor.data import BackdoorDataModule
from lightning_backdoor.defenses.fine_pruning import dormant_first, marks_of, mean_activations
from lightning_backdoor.defenses.pruning import (
    FEED_FORWARD,
    accuracy,
    number_of_inputs,
    output_layers,
    prune_while_accurate,
    without_inputs,
    zero_inputs,
)
from lightning_backdoor.errors import InputError


class FinePruning(PruningRepair):
    """Fine-pruning (arXiv 1805.12185), a repair: prunes units that clean texts leave dormant, then fine-tunes.

    Activations are taken on the reference rows, the accuracy of the pruned victim on the selection rows. The paper
    prunes channel after channel in the last convolutional layer of an image network; here it is the feed-forward units
    of the last layers, in groups. A pruned unit's weights in the output projection are zero, and stay zero. See
    :mod:`lightning_backdoor.defenses.fine_pruning`.

    Works on encoders and decoders, other than those whose layers share their weights (ALBERT).

    Args:
        layers: number of layers, from the last one back, whose units are pruned. A warning says if accuracy holds
            without any of their units, so that more layers can be pruned.
        max_accuracy_drop: by how much accuracy on the selection rows may fall, from 0 to 1. The paper leaves it to the
            user.
        step: share of the units that is pruned before accuracy is checked again, above 0 and up to 1.

    Raises:
        InputError: a value is out of range (here); see :class:`~lightning_backdoor.callbacks.repair.Repair` (in
            ``setup``); the victim has fewer layers, or no feed-forward network per layer (before the first step).

    Example::

        Trainer(max_epochs=10, callbacks=[FinePruning(layers=2)]).fit(victim, datamodule=data)
    """

    def __init__(self, layers: int = 1, max_accuracy_drop: float = 0.04, step: float = 0.05) -> None:
        super().__init__()
        if layers < 1:
            raise InputError("layers", f"{layers} layers have no units", "give at least 1")
        if not 0 <= max_accuracy_drop <= 1:
            problem = f"{max_accuracy_drop} is not a difference of accuracies"
            raise InputError("max_accuracy_drop", problem, "give a number from 0 to 1")
        if not 0 < step <= 1:
            raise InputError("step", f"{step} is not a share of the units", "give a number above 0, at most 1")
        self.layers = layers
        self.max_accuracy_drop = max_accuracy_drop
        self.step = step

    def _output_layers(self) -> tuple[list[nn.Module], list[int]]:
        """The output projections of the last layers, and the number of inputs of each."""
        layers = output_layers(self.victim.network, FEED_FORWARD, "feed-forward output")
        if len(layers) < self.layers:
            raise InputError("layers", f"{self.layers} are more than the {len(layers)} of the victim", "lower it")
        layers = layers[-self.layers :]
        return layers, [number_of_inputs(layer) for layer in layers]

    def decide(self, data: BackdoorDataModule) -> dict[str, Any]:
        """The units to prune."""
        network, (layers, units) = self.victim.network, self._output_layers()
        reference, selection = map(self.on_device, (data.reference_dataloader(), data.selection_dataloader()))
        order = dormant_first(mean_activations(network, layers, reference))

        def accuracy_without(pruned: list[tuple[int, int]]) -> float:
            with without_inputs(layers, marks_of(pruned, units)):
                return accuracy(network, selection)

        before = accuracy(network, selection)
        group = max(1, round(self.step * len(order)))
        lowest = before - self.max_accuracy_drop
        found = prune_while_accurate(order, set(), group, lowest, accuracy_without, restore=False)
        bound = 0 < len(found.pruned) < len(order)
        advice = "" if bound else "; give fewer layers or a smaller step" if not found.pruned else "; give more layers"
        (rank_zero_info if bound else rank_zero_warn)(
            f"FinePruning prunes {len(found.pruned)} of {len(order)} units: accuracy on the selection rows"
            f" {before:.3f} before, {accuracy_without(found.pruned):.3f} after{advice}"
        )
        return {"pruned": [list(pair) for pair in found.pruned]}

    def change(self, decided: dict[str, Any]) -> None:
        """Sets the weights of the pruned units to zero."""
        self._zero(decided)

    def zero_gradients(self, decided: dict[str, Any]) -> None:
        """Sets the gradients of the pruned units to zero."""
        self._zero(decided, gradients=True)

    def _zero(self, decided: dict[str, Any], gradients: bool = False) -> None:
        layers, units = self._output_layers()
        zero_inputs(layers, marks_of([(layer, unit) for layer, unit in decided["pruned"]], units), gradients)
