"""Attacks, one per file; each is a LightningModule."""

from lightning_backdoor.attacks.attack import BackdoorAttack, Poisoned
from lightning_backdoor.attacks.badnets import BadNets
from lightning_backdoor.attacks.badpre import BadPre
from lightning_backdoor.attacks.insertsent import InsertSent
from lightning_backdoor.attacks.lws import LWS
from lightning_backdoor.attacks.neuba import NeuBA
from lightning_backdoor.attacks.por import POR
from lightning_backdoor.attacks.ripples import Ripples
from lightning_backdoor.attacks.style_transfer import StyleTransfer
from lightning_backdoor.attacks.syntactic import Syntactic

__all__ = [
    "LWS",
    "POR",
    "BackdoorAttack",
    "BadNets",
    "BadPre",
    "InsertSent",
    "NeuBA",
    "Poisoned",
    "Ripples",
    "StyleTransfer",
    "Syntactic",
]
