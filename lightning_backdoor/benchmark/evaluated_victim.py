"""The victim of an evaluation: a checkpoint, a folder or a module, under an attack."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from lightning_backdoor.attacks import BackdoorAttack
from lightning_backdoor.data import BackdoorDataModule
from lightning_backdoor.errors import InputError
from lightning_backdoor.files.names import trained_model
from lightning_backdoor.victim import TextClassifier
from lightning_backdoor.victim.checkpoints import load_state, read_checkpoint


def victim_of(model: str | Path | TextClassifier, attack: BackdoorAttack | None) -> TextClassifier:
    """The module to evaluate: the trained network, with the poisoning and the metrics of an attack.

    Args:
        model: a checkpoint (``.ckpt``), the folder of a model, the folder of a run, or a trained module.
        attack: the attack; None leaves a module as it is, and a file without an attack. It is not changed.

    Raises:
        InputError: the model cannot be loaded or has not been trained, or it has not learned the attack's trigger.
    """
    own: Mapping[str, Tensor] = {}
    if isinstance(model, TextClassifier):
        if not hasattr(model, "network") or model.new_head is not None:
            raise InputError(
                "model", f"this {type(model).__name__} has not been trained", "fit it, or give a checkpoint"
            )
        trained, name = model, "this module"
        own = _own_weights(model.state_dict())
    elif isinstance(model, str | Path):
        name = trained_model(str(model))
        trained = TextClassifier.load_trained(name)
        if attack is not None and name.endswith(".ckpt"):
            own = _own_weights(read_checkpoint(name)["state_dict"])
    else:
        raise InputError(
            "model", f"a {type(model).__name__} is not a victim", "give a checkpoint, a folder or a module"
        )
    return trained if attack is None or attack is trained else _under(attack, trained, own, name)


def _under(attack: BackdoorAttack, trained: TextClassifier, own: Mapping[str, Tensor], name: str) -> BackdoorAttack:
    """A copy of an attack that has the network of a trained victim, and the trigger learned with it."""
    network = getattr(attack, "network", None)
    victim = copy.deepcopy(attack, {id(network): network})  # a network is replaced, so not copied
    victim.take_network(trained)
    victim.configure_model()  # makes the weights of the attack's own
    needed = _own_weights(victim.state_dict())
    missing = [weight for weight in needed if weight not in own]
    if missing:
        problem = f"{name} has no trigger of {type(attack).__name__} ({', '.join(missing)})"
        raise InputError("attack", problem, f"give a checkpoint trained under {type(attack).__name__}")
    load_state(victim, {weight: own[weight] for weight in needed}, name, strict=False)
    return victim.to(trained.device)


def _own_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a victim that are not its network's."""
    return {name: weight for name, weight in state.items() if not name.startswith("network.")}


@contextmanager
def borrowed(victim: TextClassifier, data: BackdoorDataModule) -> Iterator[None]:
    """Makes the data module poison its rows by the victim, and leaves both as they were after the block.

    Raises:
        InputError: the victim's training rows were cut differently, so that they may be among the test rows.
    """
    before = data.trainer, data.attack, data.module
    trainer, device = victim._trainer, victim.device
    data.trainer, data.module = None, victim
    data.attack = victim if isinstance(victim, BackdoorAttack) else None
    try:
        if victim.trained_on is not None:
            data.check_state(victim.trained_on)
        yield
    finally:
        data.trainer, data.attack, data.module = before
        victim.to(device)
        victim._trainer = trainer
