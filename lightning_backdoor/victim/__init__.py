"""The victim: the text classifier under attack, its checkpoints, and the record of a training-time defense."""

from lightning_backdoor.victim.classifier import TextClassifier
from lightning_backdoor.victim.training_defense import TrainingDefense

load_trained = TextClassifier.load_trained

__all__ = ["TextClassifier", "TrainingDefense", "load_trained"]
