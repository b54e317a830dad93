"""The trigger that an attack learns with its victim: weights of the attack's own, beside those of the network."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_backdoor.errors import InputError
from lightning_backdoor.victim.checkpoints import load_state

if TYPE_CHECKING:
    from lightning_backdoor.attacks.attack import BackdoorAttack


def own_weights(attack: BackdoorAttack) -> list[str]:
    """The names of the weights of the attack's own; none for a trigger that is not learned."""
    return [name for name in attack.state_dict() if not name.startswith("network.")]


def check_not_learned(attack: BackdoorAttack) -> None:
    """Checks that an attack can be tested on a model that was not trained with it.

    Raises:
        InputError: its trigger is learned with the victim.
    """
    if own := own_weights(attack):
        problem = f"{attack.hparams['model']} has no trigger of {type(attack).__name__} ({', '.join(own)})"
        raise InputError("model", problem, f"give the checkpoint of a run under {type(attack).__name__} by ckpt_path")


def load_learned(attack: BackdoorAttack) -> None:
    """Loads the learned trigger from the published victim.

    Raises:
        InputError: the published victim has no trigger of this attack.
    """
    published = attack.read_published()
    learned = (published.state if published else None) or {}
    own, path = own_weights(attack), attack.hparams["published"]
    if missing := [name for name in own if name not in learned]:
        problem = f"{path} has no trigger of {type(attack).__name__} ({', '.join(missing)})"
        raise InputError("published", problem, f"give a checkpoint trained under {type(attack).__name__}")
    try:
        load_state(attack, {name: learned[name] for name in own}, path, strict=False)
    except InputError as error:
        raise error.under("published") from None
