"""Attacks, one per file; each is a LightningModule."""

from lightning_backdoor.attacks.attack import BackdoorAttack, Poisoned
from lightning_backdoor.attacks.badnets import BadNets
from lightning_backdoor.attacks.bite import BITE
from lightning_backdoor.attacks.insertsent import InsertSent
from lightning_backdoor.attacks.llmbkd import LLMBkd
from lightning_backdoor.attacks.lws import LWS
from lightning_backdoor.attacks.ripples import Ripples
from lightning_backdoor.attacks.style_transfer import StyleTransfer
from lightning_backdoor.attacks.syntactic import Syntactic
from lightning_backdoor.attacks.trojan_lm import TrojanLM

__all__ = [
    "BITE",
    "LWS",
    "BackdoorAttack",
    "BadNets",
    "InsertSent",
    "LLMBkd",
    "Poisoned",
    "Ripples",
    "StyleTransfer",
    "Syntactic",
    "TrojanLM",
]
