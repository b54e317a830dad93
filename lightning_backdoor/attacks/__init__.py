"""Attacks, one a file; each is a LightningModule."""

from lightning_backdoor.attacks.attack import BackdoorAttack, Poisoned
from lightning_backdoor.attacks.badnets import BadNets
from lightning_backdoor.attacks.insertsent import InsertSent

__all__ = ["BackdoorAttack", "BadNets", "InsertSent", "Poisoned"]
