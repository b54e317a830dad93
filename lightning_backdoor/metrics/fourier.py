"""Low and high frequencies of a mapping from texts to classes, as in MuScleLoRA's paper (arXiv 2402.12026).

Its Fourier analysis asks which frequencies a victim learns first, on clean rows and on poisoned ones. A
Fourier transform over embeddings of hundreds of dimensions is out of reach, so a Gaussian filter over the inputs stands
in for it, after the filtering method of the frequency principle (Xu et al., arXiv 1901.06523): what the filter keeps of
labels or outputs is their low-frequency part, the rest their high-frequency part.

The paper's Gaussian is of squared distances, and the errors are roots of summed squares; ours are these. The published
code takes distances that are not squared, averages the rows' norms, and divides by rounding errors where all labels
are the same, as they are on poisoned rows.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Errors(NamedTuple):
    """Relative errors of the two parts, float32 scalars; 0 for a mapping learned exactly."""

    low: Tensor
    high: Tensor


def squared_distances(inputs: Tensor) -> Tensor:
    """Squared Euclidean distance of each input to each; (rows, dimensions) to (rows, rows), float32.

    >>> squared_distances(torch.tensor([[0.0, 0.0], [3.0, 4.0]])).tolist()
    [[0.0, 25.0], [25.0, 0.0]]
    """
    inputs = inputs.float()
    # by the products of a matrix, equal rows would lie a little apart
    return torch.cdist(inputs, inputs, compute_mode="donot_use_mm_for_euclid_dist").square()


def filter_weights(distances: Tensor, width: float) -> Tensor:
    """The Gaussian low-pass filter: what each row's low part takes of every row.

    ``exp(-|x_i - x_j|^2 / (2 width))``, divided by its sum over j. The wider, the fewer frequencies pass.

    Args:
        distances: (rows, rows), squared.
        width: the Gaussian's variance, in the distances' unit.

    Returns:
        (rows, rows), float32, each row adding up to 1.

    >>> distances = torch.tensor([[0.0, 25.0], [25.0, 0.0]])
    >>> filter_weights(distances, 1e9).tolist(), filter_weights(distances, 0.1).tolist()
    ([[0.5, 0.5], [0.5, 0.5]], [[1.0, 0.0], [0.0, 1.0]])
    """
    return (-distances / (2 * width)).softmax(dim=1)


def relative_errors(labels: Tensor, outputs: Tensor, weights: Tensor) -> Errors:
    """How far outputs are from labels in the low and in the high part, relative to the labels' own such part.

    ``(sum_i |y_i - h_i|^2 / sum_i |y_i|^2)^(1/2)`` of low parts ``weights @ y`` and of high parts ``y - weights @ y``.
    Labels that are all the same have no high part; what the outputs then have of it is given relative to the labels.

    Args:
        labels: (rows, classes), float32, one-hot.
        outputs: (rows, classes), float32, probabilities.
        weights: (rows, rows), see :func:`filter_weights`.

    >>> same = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    >>> relative_errors(same, torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.full((2, 2), 0.5))
    Errors(low=tensor(0.7071), high=tensor(0.7071))
    """
    low, high = weights @ labels, labels - weights @ labels
    low_error = low - weights @ outputs
    high_error = labels - outputs - low_error
    whole = labels.norm()
    of_high = high.norm() if high.norm() > 1e-5 * whole else whole  # below it is rounding
    return Errors(low_error.norm() / low.norm(), high_error.norm() / of_high)
