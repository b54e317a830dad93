"""The companion: a classifier that never saw poison, a logistic regression on the states of a public encoder.

It is fitted on the trusted rows alone. It is weaker than a fine-tuned network, but shares no weight with it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

#: added to the standard deviation of each number, so that a constant one does not divide by zero.
SMALLEST = 1e-6


class Companion(NamedTuple):
    """A linear classifier of standardised features, float64.

    Attributes:
        mean: (features,), of the fitted rows.
        std: (features,), of the fitted rows, plus ``SMALLEST``.
        weight: (classes, features).
        bias: (classes,).
    """

    mean: Tensor
    std: Tensor
    weight: Tensor
    bias: Tensor

    def logits(self, features: Tensor) -> Tensor:
        """The logits of rows of features, (rows, classes); of two classes their difference is the log-odds."""
        return (features - self.mean) / self.std @ self.weight.mT + self.bias


def fit_companion(features: Tensor, labels: Tensor, penalty: float) -> Companion:
    """Fits the logistic regression, which is convex: ``sum log-loss + penalty |W|²`` over the rows W of the classes.

    Of two classes with the log-odds ``w x + b`` that is ``sum log-loss + penalty / 2 |w|²``. The bias is free.

    Args:
        features: (rows, features), float64, on the processor.
        labels: (rows,), int64, every class from 0 on has a row.
        penalty: above 0.

    >>> features = torch.tensor([[-1.0], [-3.0], [1.0], [3.0]]).double()
    >>> fit_companion(features, torch.tensor([0, 0, 1, 1]), penalty=1.0).logits(features).argmax(dim=1).tolist()
    [0, 0, 1, 1]
    """
    from sklearn.linear_model import LogisticRegression

    mean, std = features.mean(dim=0), features.std(dim=0, correction=0) + SMALLEST
    classes = int(labels.max()) + 1
    # scikit-learn minimises C sum log-loss + |W|² / 2, and of two classes has the log-odds alone
    model = LogisticRegression(C=1 / (penalty if classes == 2 else 2 * penalty), tol=1e-8, max_iter=10_000)
    model.fit(((features - mean) / std).numpy(), labels.numpy())
    weight, bias = torch.from_numpy(model.coef_), torch.from_numpy(model.intercept_)
    if classes == 2:
        weight, bias = torch.cat([-weight, weight]) / 2, torch.cat([-bias, bias]) / 2
    return Companion(mean, std, weight, bias)
