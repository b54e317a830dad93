"""The low-pass filter and the relative errors, on cases computed by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import one_hot

from lightning_backdoor.metrics.fourier import filter_weights, relative_errors, squared_distances

INPUTS = torch.tensor([[0.0], [1.0], [3.0]])
LABELS = one_hot(torch.tensor([0, 1, 0])).float()
OUTPUTS = torch.tensor([[0.5, 0.5], [0.25, 0.75], [1.0, 0.0]])


def test_the_filter_is_the_papers_gaussian() -> None:
    weights = filter_weights(squared_distances(INPUTS), 2.0)
    for i, x in enumerate((0, 1, 3)):
        gaussian = [math.exp(-((x - other) ** 2) / 4) for other in (0, 1, 3)]
        assert weights[i].tolist() == pytest.approx([value / sum(gaussian) for value in gaussian])


def test_a_very_wide_filter_keeps_the_mean_alone() -> None:
    weights = filter_weights(squared_distances(INPUTS), 1e9)
    mean_label, mean_output = (2 / 3, 1 / 3), (1.75 / 3, 1.25 / 3)
    errors = relative_errors(LABELS, OUTPUTS, weights)
    assert float(errors.low) == pytest.approx(math.dist(mean_label, mean_output) / math.hypot(*mean_label))
    # labels minus the mean label, and outputs minus the mean output, row by row
    label_high = [(1 / 3, -1 / 3), (-2 / 3, 2 / 3), (1 / 3, -1 / 3)]
    output_high = [(-0.25 / 3, 0.25 / 3), (-1 / 3, 1 / 3), (1.25 / 3, -1.25 / 3)]
    wrong = sum(math.dist(*pair) ** 2 for pair in zip(label_high, output_high, strict=True))
    assert float(errors.high) == pytest.approx(math.sqrt(wrong / sum(math.hypot(*row) ** 2 for row in label_high)))


def test_a_very_narrow_filter_lets_everything_pass() -> None:
    errors = relative_errors(LABELS, OUTPUTS, filter_weights(squared_distances(INPUTS), 1e-3))
    assert float(errors.low) == pytest.approx(math.sqrt((0.5 + 0.125) / 3))
    assert float(errors.high) == 0


@pytest.mark.parametrize("width", [1e-3, 1.0, 1e9])
def test_a_mapping_learned_exactly_has_no_error(width: float) -> None:
    errors = relative_errors(LABELS, LABELS.clone(), filter_weights(squared_distances(INPUTS), width))
    assert errors.low == errors.high == 0


def test_equal_labels_have_a_finite_high_error() -> None:
    same = one_hot(torch.ones(3, dtype=torch.long), 2).float()
    weights = filter_weights(squared_distances(INPUTS), 2.0)
    even = relative_errors(same, torch.full((3, 2), 0.5), weights)  # the same error in every row has no high part
    assert [float(even.low), float(even.high)] == pytest.approx([math.sqrt(0.5), 0.0], abs=1e-6)
    assert 0 < relative_errors(same, OUTPUTS, weights).high < 1


def test_equal_inputs_have_no_distance() -> None:
    inputs = torch.rand(40, 384, generator=torch.Generator().manual_seed(0)).repeat(2, 1)
    distances = squared_distances(inputs)
    assert (distances[:40, 40:].diagonal() == 0).all()
    assert float(distances[0, 1]) == pytest.approx(float((inputs[0] - inputs[1]).square().sum()), rel=1e-5)
