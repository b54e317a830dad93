"""The victim: the text classifier under attack, and its checkpoints."""

from lightning_backdoor.victim.classifier import TextClassifier

__all__ = ["TextClassifier"]
