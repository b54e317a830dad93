"""A callback that runs gradient-attention scoring and repair (X-GRAAD)."""

from __future__ import annotations

from lightning_backdoor.callbacks.inference_defense import InferenceDefense
from lightning_backdoor.defenses.gradient_attention import GradientAttention


class GradientAttentionDefense(InferenceDefense):
    """Runs gradient-attention scoring and repair (X-GRAAD, arXiv 2510.04347) in validation and test.

    Args:
        fpr: share of clean texts, above 0 and below 1, that the threshold may flag.
        padded_like_paper: length in tokens to which every text is padded, as in the published figures; False pads
            nothing. See :class:`GradientAttention`.
        name: prefix of logged names and written files; required if several defenses are attached.
        texts: number of clean texts, and of poisoned texts, to keep for the token view.

    Raises:
        InputError: ``fpr``, ``padded_like_paper`` or ``texts`` is out of range.

    Example::

        trainer = Trainer(callbacks=[GradientAttentionDefense(fpr=0.05)])
        trainer.test(victim, datamodule=data)
    """

    def __init__(
        self, fpr: float = 0.10, padded_like_paper: int | bool = False, name: str = "", texts: int = 100
    ) -> None:
        super().__init__(GradientAttention(fpr=fpr, padded_like_paper=padded_like_paper), name=name, texts=texts)
