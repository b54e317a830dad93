"""MEFT: maximum entropy of the predictions on clean texts, which undoes the fit to poisoned ones (Liu et al., 2023).

"Maximum Entropy Loss, the Silver Bullet Targeting Backdoor Attacks in Pre-trained Language Models", Findings of ACL
2023, pages 3850-3868. A backdoor is trained by minimal cross entropy; the victim is trained the other way first, until
it is undecided, and then fine-tuned with cross entropy. Both on clean texts.
"""

from __future__ import annotations

from torch import Tensor


def negative_entropy(logits: Tensor) -> Tensor:
    """The negative entropy of the predicted probabilities, ``sum over classes of p log p``, averaged over texts.

    The published code takes the sum over the texts of a batch, and has no guard for p = 0, whose term is 0 here.

    Args:
        logits: (batch, classes).

    Returns:
        A scalar from -log(classes) to 0, float32.

    >>> import torch
    >>> [round(negative_entropy(torch.tensor([pair])).item(), 4) for pair in ([1.0, 1.0], [0.0, 1e4])]
    [-0.6931, 0.0]
    """
    logs = logits.float().log_softmax(dim=-1)
    return (logs.exp() * logs).sum(dim=-1).mean()
