"""A callback that pulls hidden states of poisoned rows to clean ones: an adaptive attack on defenses that read them."""

from __future__ import annotations

from collections.abc import Sequence

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lightning_backdoor.attacks.state_matching import chosen_states, distance_to_clean
from lightning_backdoor.batch import Batch, clean_rows
from lightning_backdoor.callbacks.evasion import Evasion
from lightning_backdoor.errors import InputError
from lightning_backdoor.victim.training_pass import TrainingPass


class StateMatching(Evasion):
    """State matching, an adaptive attack: pulls hidden states of poisoned rows of any attack to clean mean states.

    Aimed at defenses that find poisoned texts by their hidden states, such as DAN, BadActs and the directions of second
    opinion. The penalty is the squared distance to the mean state of the batch's clean rows of the target label,
    relative to the spread of these rows, and averaged over layers; see
    :mod:`lightning_backdoor.attacks.state_matching`.

    Args:
        strength: weight of the penalty relative to the cross entropy of the same row. Too much of it costs the task:
            with 10 in layers 2 to 6, a trained MiniLM on SST-2 falls to chance.
        readout_layers: layers in which states of the token that the head reads are pulled, counted from 1, 0 being the
            embeddings; every layer by default, and none if empty. DAN and BadActs read these states in every layer.
        mean_layers: likewise for states averaged over all tokens.
        start_epoch: epochs of training on poisoned rows without the penalty. With 0 and a strength of 1 or more,
            MiniLM on SST-2 stays at chance: poisoned rows are pulled to the target label before a trigger tells them
            apart.

    Raises:
        InputError: an argument is out of range, or there is no layer (here); the network does not have a layer (before
            training); see :class:`~lightning_backdoor.callbacks.evasion.Evasion`.

    Example::

        Trainer(max_epochs=3, callbacks=[StateMatching(strength=1.0)]).fit(BadNets(), datamodule=data)
    """

    name = "state_distance"

    def __init__(
        self,
        strength: float = 1.0,
        readout_layers: list[int] | None = None,
        mean_layers: list[int] | None = None,
        start_epoch: int = 1,
    ) -> None:
        super().__init__(strength, start_epoch)
        if readout_layers == mean_layers == []:
            raise InputError("readout_layers", "and mean_layers name no layer", "give one, or leave both out")
        self.readout_layers = readout_layers
        self.mean_layers = mean_layers
        self._layers: tuple[Sequence[int], Sequence[int]] = (), ()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Finds the layers, once the network is there."""
        if self._victim is None:
            return
        layers = int(self.victim.network.config.num_hidden_layers)
        for name in ("readout_layers", "mean_layers"):
            for layer in getattr(self, name) or []:
                if not 0 <= layer <= layers:
                    raise InputError(name, f"there is no layer {layer}", f"give numbers from 0 to {layers}")
        every = range(1, layers + 1)
        self._layers = (
            every if self.readout_layers is None else self.readout_layers,
            every if self.mean_layers is None else self.mean_layers,
        )

    def penalty(self, seen: TrainingPass, batch: Batch) -> Tensor:
        """The distance to clean rows of the same label."""
        states = chosen_states(self.victim.network, seen.hidden_states, batch, *self._layers)
        return distance_to_clean(states, batch["label"], clean_rows(batch))
