"""Attacks, one per file; each is a LightningModule."""

from lightning_backdoor.attacks.attack import BackdoorAttack
from lightning_backdoor.attacks.badnets import BadNets
from lightning_backdoor.attacks.badpre import BadPre
from lightning_backdoor.attacks.bite import BITE
from lightning_backdoor.attacks.composite import Composite
from lightning_backdoor.attacks.ep import EP
from lightning_backdoor.attacks.insertsent import InsertSent
from lightning_backdoor.attacks.llmbkd import LLMBkd
from lightning_backdoor.attacks.lwp import LWP
from lightning_backdoor.attacks.lws import LWS
from lightning_backdoor.attacks.multi_target import MultiTarget
from lightning_backdoor.attacks.neuba import NeuBA
from lightning_backdoor.attacks.poison_files import PoisonFiles
from lightning_backdoor.attacks.poisoned import Poisoned
from lightning_backdoor.attacks.por import POR
from lightning_backdoor.attacks.ripples import Ripples
from lightning_backdoor.attacks.sos import SOS
from lightning_backdoor.attacks.style_transfer import StyleTransfer
from lightning_backdoor.attacks.syntactic import Syntactic
from lightning_backdoor.attacks.trojan_lm import TrojanLM

__all__ = [
    "BITE",
    "EP",
    "LWP",
    "LWS",
    "POR",
    "SOS",
    "BackdoorAttack",
    "BadNets",
    "BadPre",
    "Composite",
    "InsertSent",
    "LLMBkd",
    "MultiTarget",
    "NeuBA",
    "PoisonFiles",
    "Poisoned",
    "Ripples",
    "StyleTransfer",
    "Syntactic",
    "TrojanLM",
]
