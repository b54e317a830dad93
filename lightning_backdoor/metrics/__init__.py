"""Metrics of attacks, defenses and poisoned texts, one per file; exact under any number of processes."""

from lightning_backdoor.metrics.attack_success_rate import AttackSuccessRate
from lightning_backdoor.metrics.clean_accuracy import CleanAccuracy
from lightning_backdoor.metrics.detection_auroc import DetectionAUROC
from lightning_backdoor.metrics.false_trigger_rate import FalseTriggerRate
from lightning_backdoor.metrics.flag_rate import FlagRate
from lightning_backdoor.metrics.localisation import Localisation
from lightning_backdoor.metrics.overhead import Overhead
from lightning_backdoor.metrics.perplexity_increase import PerplexityIncrease
from lightning_backdoor.metrics.poisoned_accuracy import PoisonedAccuracy
from lightning_backdoor.metrics.sentence_similarity import SentenceSimilarity
from lightning_backdoor.metrics.target_rate import TargetRate
from lightning_backdoor.metrics.word_edit_distance import WordEditDistance

__all__ = [
    "AttackSuccessRate",
    "CleanAccuracy",
    "DetectionAUROC",
    "FalseTriggerRate",
    "FlagRate",
    "Localisation",
    "Overhead",
    "PerplexityIncrease",
    "PoisonedAccuracy",
    "SentenceSimilarity",
    "TargetRate",
    "WordEditDistance",
]
