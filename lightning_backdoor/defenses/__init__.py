"""Defenses, one algorithm per file; they work on tensors and strings and do not depend on Lightning."""

from lightning_backdoor.data.cleaning import DataDefense
from lightning_backdoor.defenses.defense import REJECTED, Defense, Scores, Verdict, judge, threshold_at_fpr
from lightning_backdoor.defenses.flagged_share import FlaggedShare, flagged_share_verdict
from lightning_backdoor.defenses.gradient_attention import GradientAttention
from lightning_backdoor.defenses.inspection import Inspection, ModelVerdict
from lightning_backdoor.defenses.onion import Onion
from lightning_backdoor.defenses.paraphrase_consistency import ParaphraseConsistency
from lightning_backdoor.defenses.rap import Rap
from lightning_backdoor.defenses.strip import Strip
from lightning_backdoor.defenses.substitution_voting import SubstitutionVoting

__all__ = [
    "REJECTED",
    "DataDefense",
    "Defense",
    "FlaggedShare",
    "GradientAttention",
    "Inspection",
    "ModelVerdict",
    "Onion",
    "ParaphraseConsistency",
    "Rap",
    "Scores",
    "Strip",
    "SubstitutionVoting",
    "Verdict",
    "flagged_share_verdict",
    "judge",
    "threshold_at_fpr",
]
