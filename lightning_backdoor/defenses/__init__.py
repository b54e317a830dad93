"""Defenses, one algorithm per file; they work on tensors and strings and do not depend on Lightning."""

from lightning_backdoor.data.cleaning import DataDefense
from lightning_backdoor.defenses.activation_clustering import ActivationClustering
from lightning_backdoor.defenses.badacts import BadActs
from lightning_backdoor.defenses.bki import BKI
from lightning_backdoor.defenses.cube import Cube
from lightning_backdoor.defenses.dan import Dan
from lightning_backdoor.defenses.dbs import DBS
from lightning_backdoor.defenses.defense import REJECTED, Defense, Scores, Verdict, judge, threshold_at_fpr
from lightning_backdoor.defenses.dup import Dup
from lightning_backdoor.defenses.flagged_share import FlaggedShare, flagged_share_verdict
from lightning_backdoor.defenses.gradient_attention import GradientAttention
from lightning_backdoor.defenses.inspection import Inspection, ModelVerdict
from lightning_backdoor.defenses.lcf import LCF
from lightning_backdoor.defenses.onion import Onion
from lightning_backdoor.defenses.paraphrase_consistency import ParaphraseConsistency
from lightning_backdoor.defenses.rap import Rap
from lightning_backdoor.defenses.second_opinion import SecondOpinion
from lightning_backdoor.defenses.spectral_signatures import SpectralSignatures
from lightning_backdoor.defenses.strip import Strip
from lightning_backdoor.defenses.substitution_voting import SubstitutionVoting
from lightning_backdoor.defenses.zdef import ZDef

__all__ = [
    "BKI",
    "DBS",
    "LCF",
    "REJECTED",
    "ActivationClustering",
    "BadActs",
    "Cube",
    "Dan",
    "DataDefense",
    "Defense",
    "Dup",
    "FlaggedShare",
    "GradientAttention",
    "Inspection",
    "ModelVerdict",
    "Onion",
    "ParaphraseConsistency",
    "Rap",
    "Scores",
    "SecondOpinion",
    "SpectralSignatures",
    "Strip",
    "SubstitutionVoting",
    "Verdict",
    "ZDef",
    "flagged_share_verdict",
    "judge",
    "threshold_at_fpr",
]
