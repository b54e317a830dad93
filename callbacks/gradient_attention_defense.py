"""X-GRAAD attached to a run."""

from __future__ import annotations

from lightning_backdoor.callbacks.inference_defense import InferenceDefense
from lightning_backdoor.defenses.gradient_attention import GradientAttention


class GradientAttentionDefense(InferenceDefense):
    """Gradient-attention scoring and repair (X-GRAAD, arXiv 2510.04347) at validation and test time.

    Args:
        fpr: share of clean texts, between 0 and 1, that the threshold may flag.
        padded_like_paper: let padded positions add attention, as in the published figures.
        name: put before the names logged and the files written; needed where several defenses are attached.
        texts: how many clean and how many poisoned texts to keep for the token view.

    Example::

        trainer = Trainer(callbacks=[GradientAttentionDefense(fpr=0.05)])
        trainer.test(victim, datamodule=data)
    """

    def __init__(self, fpr: float = 0.10, padded_like_paper: bool = False, name: str = "", texts: int = 100) -> None:
        super().__init__(GradientAttention(fpr=fpr, padded_like_paper=padded_like_paper), name=name, texts=texts)
