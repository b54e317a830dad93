"""Directions in which the disputed texts of a set differ from clean texts of the same prediction.

Disputed are texts of which a first, weaker score says that they may be poisoned. One such text proves little. The mean
difference of all of them from the clean mean of their predicted class shows in which direction a backdoor moves hidden
states, and other poisoned texts are found along it. A text must not be found by a direction that it taught itself:
texts are divided into two folds by their content, and are scored by the direction of the other fold.

What a set gives are sums and counts, so that they can be added up over batches, processes and sets.
"""

from __future__ import annotations

from collections.abc import Sequence
from zlib import crc32

import torch
from torch import Tensor

from lightning_backdoor.defenses.mahalanobis import Covariance, whitened

FOLDS = 2
#: the fewest disputed texts that give a direction.
FEWEST = 3


def folds_of(texts: Sequence[str]) -> Tensor:
    """The fold of each text, (texts,), int64: the CRC-32 of its UTF-8 bytes modulo ``FOLDS``.

    >>> folds_of(["a good film", "a bad film"]).tolist()
    [0, 0]
    """
    return torch.tensor([crc32(text.encode()) % FOLDS for text in texts], dtype=torch.long)


def disputed_sums(features: Tensor, predictions: Tensor, folds: Tensor, disputed: Tensor, classes: int) -> Tensor:
    """Sums and counts of the disputed texts, by predicted class and fold.

    Args:
        features: (features, texts, size).
        predictions: (texts,), int64.
        folds: (texts,), int64.
        disputed: (texts,), bool.
        classes: number of classes.

    Returns:
        (features, classes, FOLDS, size + 1), float64, on the processor: the sum of each feature, and the count.
    """
    count, _, size = features.shape
    values = features[:, disputed].cpu().double()
    rows = torch.cat([values, values.new_ones(count, values.shape[1], 1)], dim=2)
    group = (predictions * FOLDS + folds.to(predictions))[disputed].cpu()
    sums = rows.new_zeros(count, classes * FOLDS, size + 1).index_add(1, group, rows)
    return sums.view(count, classes, FOLDS, size + 1)


def directions_of(sums: Tensor, means: Tensor, covariance: Covariance) -> Tensor:
    """The direction w by which the texts of each class and fold are scored.

    ``w = S^-1 d``, scaled to ``w' S w = 1``, with d the mean of the disputed texts of the class in the other folds
    minus the clean mean of the class. Zero where these are fewer than ``FEWEST``.

    Args:
        sums: see :func:`disputed_sums`.
        means: (features, classes, size), clean means of each predicted class.
        covariance: S of each feature, of clean texts.

    Returns:
        (features, classes, FOLDS, size).
    """
    others = (sums.sum(dim=2, keepdim=True) - sums).to(means)
    counts = others[..., -1:]
    differences = others[..., :-1] / counts.clamp(min=1) - means[:, :, None]
    directions = whitened(differences.flatten(1, 2), covariance).view(differences.shape)
    length = (differences * directions).sum(dim=-1, keepdim=True).clamp(min=0).sqrt()
    return torch.where((counts >= FEWEST) & (length > 0), directions / length, 0.0)


def along_directions(features: Tensor, predictions: Tensor, folds: Tensor, means: Tensor, directions: Tensor) -> Tensor:
    """How far each text lies in the direction of its predicted class and its fold, from the mean of the class.

    Args:
        features: (features, texts, size).
        predictions: (texts,), int64.
        folds: (texts,), int64.
        means: (features, classes, size).
        directions: see :func:`directions_of`.

    Returns:
        (features, texts).
    """
    return ((features - means[:, predictions]) * directions[:, predictions, folds.to(predictions)]).sum(dim=-1)
