"""Low and high frequencies of a mapping from texts to classes, as in MuScleLoRA's paper (arXiv 2402.12026).

The paper's Fourier analysis asks which frequencies a victim learns first, on clean and on poisoned rows. A Fourier
transform over embeddings of hundreds of dimensions is infeasible. It is replaced by a Gaussian filter over the inputs,
the filtering method of the frequency principle (Xu et al., arXiv 1901.06523): the part of labels or outputs that the
filter keeps is their low-frequency part, the rest is their high-frequency part.

As in the paper, the Gaussian is a function of squared distances, and errors are roots of summed squares. The published
code differs: its distances are not squared, it averages the rows' norms, and it divides by rounding errors if all
labels are the same, as on poisoned rows.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Errors(NamedTuple):
    """Relative errors of outputs against labels, float32 scalars; 0 where the outputs equal the labels.

    Attributes:
        low: error of the low-frequency part.
        high: error of the high-frequency part.
    """

    low: Tensor
    high: Tensor


def squared_distances(inputs: Tensor) -> Tensor:
    """Squared Euclidean distances between all pairs of inputs; (rows, dimensions) to (rows, rows), float32.

    >>> squared_distances(torch.tensor([[0.0, 0.0], [3.0, 4.0]])).tolist()
    [[0.0, 25.0], [25.0, 0.0]]
    """
    inputs = inputs.float()
    # computed by matrix products, the distance of equal rows would not be exactly 0
    return torch.cdist(inputs, inputs, compute_mode="donot_use_mm_for_euclid_dist").square()


def filter_weights(distances: Tensor, width: float) -> Tensor:
    """The matrix of a Gaussian low-pass filter, by which labels or outputs are multiplied.

    Entry (i, j) is ``exp(-|x_i - x_j|^2 / (2 width))``, divided by the sum of its row: the weight of row j in the
    low-frequency part of row i. The larger the width, the fewer frequencies pass.

    Args:
        distances: squared distances, (rows, rows).
        width: the Gaussian's variance, in the unit of the squared distances.

    Returns:
        (rows, rows), float32, each row adding up to 1.

    >>> distances = torch.tensor([[0.0, 25.0], [25.0, 0.0]])
    >>> filter_weights(distances, 1e9).tolist(), filter_weights(distances, 0.1).tolist()
    ([[0.5, 0.5], [0.5, 0.5]], [[1.0, 0.0], [0.0, 1.0]])
    """
    return (-distances / (2 * width)).softmax(dim=1)


def relative_errors(labels: Tensor, outputs: Tensor, weights: Tensor) -> Errors:
    """Errors of outputs against labels in the low- and in the high-frequency part, relative to that part of the labels.

    The error is ``(sum_i |y_i - h_i|^2 / sum_i |y_i|^2)^(1/2)``, where y and h are the low parts (``weights @ labels``,
    ``weights @ outputs``) or the high parts (``labels - weights @ labels``, likewise for outputs). If all labels are
    the same, they have no high part, and the high error is relative to the whole labels.

    Args:
        labels: (rows, classes), float32, one-hot.
        outputs: (rows, classes), float32, probabilities.
        weights: (rows, rows), from :func:`filter_weights`.

    >>> same = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    >>> relative_errors(same, torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.full((2, 2), 0.5))
    Errors(low=tensor(0.7071), high=tensor(0.7071))
    """
    low, high = weights @ labels, labels - weights @ labels
    low_error = low - weights @ outputs
    high_error = labels - outputs - low_error
    whole = labels.norm()
    high_scale = high.norm() if high.norm() > 1e-5 * whole else whole  # a smaller norm is only rounding
    return Errors(low_error.norm() / low.norm(), high_error.norm() / high_scale)
