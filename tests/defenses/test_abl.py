"""ABL: its losses and the isolation, against loops over rows."""

from __future__ import annotations

import pytest
import torch

from lightning_backdoor.defenses.abl import first_learned, global_gradient_ascent, local_gradient_ascent, mean_of

LOSSES = [0.9, 0.2, 0.5, 0.1, 0.7, 0.2]
ISOLATED = [False, True, False, True, False, False]


def test_local_gradient_ascent_turns_the_rows_below_gamma() -> None:
    losses = torch.tensor(LOSSES, requires_grad=True)
    loss = local_gradient_ascent(losses, gamma=0.5)
    signs = [(value > 0.5) - (value < 0.5) for value in LOSSES]
    assert float(loss) == pytest.approx(sum(sign * value for sign, value in zip(signs, LOSSES, strict=True)) / 6)
    (gradient,) = torch.autograd.grad(loss, losses)
    assert gradient.tolist() == pytest.approx([sign / 6 for sign in signs])


def test_global_gradient_ascent_is_the_mean_of_the_others_minus_that_of_the_isolated() -> None:
    losses = torch.tensor(LOSSES, requires_grad=True)
    others = [value for value, isolated in zip(LOSSES, ISOLATED, strict=True) if not isolated]
    loss = global_gradient_ascent(losses, torch.tensor(ISOLATED))
    assert float(loss) == pytest.approx(sum(others) / 4 - (0.2 + 0.1) / 2)
    (gradient,) = torch.autograd.grad(loss, losses)
    assert gradient.tolist() == pytest.approx([-0.5 if isolated else 0.25 for isolated in ISOLATED])


def test_the_mean_of_no_rows_is_zero_with_a_gradient() -> None:
    losses = torch.tensor([float("inf"), 1.0], requires_grad=True)
    loss = mean_of(losses, torch.tensor([False, False]))
    (gradient,) = torch.autograd.grad(loss, losses)
    assert loss == 0
    assert gradient.tolist() == [0, 0]


def test_the_rows_with_the_lowest_losses_are_isolated() -> None:
    expected = sorted(sorted(range(6), key=lambda row: (LOSSES[row], row))[:2])
    assert first_learned(torch.tensor(LOSSES), share=0.4).tolist() == expected == [1, 3]
    assert first_learned(torch.tensor(LOSSES), share=0.01).tolist() == [3]
    assert len(first_learned(torch.zeros(100), share=0.29)) == 29
