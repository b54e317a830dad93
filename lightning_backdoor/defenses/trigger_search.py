"""The search of DBS (arXiv 2202.05749) for a trigger: a softmax over the vocabulary whose temperature is scaled.

A search for one label and one place in the text optimises a matrix v, (trigger length, vocabulary), that starts at
zero. In each step, every token of the trigger is a mixture: its embedding is ``softmax(v / temperature)`` times the
table of word embeddings. The mixtures are put into clean texts of all other labels, and the loss is the mean cross
entropy towards the searched label. The temperature is scaled every few steps:

- it is divided if the loss is below a bound, which moves each mixture towards a single token;
- otherwise it is multiplied, and uniform noise is added inside the softmax of this one step, to leave a local optimum.

When all mixtures are single tokens, up to a tolerance, and the loss is within the bound, the tokens are kept, and the
bound becomes half of their loss. After several rollbacks since tokens were last kept or the bound was doubled, the
bound is doubled, but stays below the lowest loss of kept tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Scaling(NamedTuple):
    """How the temperature and the bound are scaled; the defaults are the published ones.

    Attributes:
        highest: the first and highest temperature.
        every: number of steps between two changes of the temperature.
        cooling: divisor of the temperature.
        reheating: factor of the temperature in a rollback.
        bound: first bound on the loss, in nats.
        noise: upper end of the noise of a rollback, which is added to ``v / temperature``.
        patience: number of rollbacks, since tokens were last kept or the bound was doubled, after which the bound is
            doubled.
        tolerance: how much the largest shares of tokens, summed over the trigger, may lack of one per token.
    """

    highest: float = 2.0
    every: int = 5
    cooling: float = 2.0
    reheating: float = 5.0
    bound: float = 0.1
    noise: float = 10.0
    patience: int = 5
    tolerance: float = 1e-3


def search_trigger(
    loss_of: Callable[[Tensor], Tensor],
    allowed: Tensor,
    length: int,
    steps: int,
    learning_rate: float,
    scaling: Scaling,
    generator: torch.Generator,
    advance: Callable[[int], object] = lambda count: None,
) -> Tensor:
    """Searches for the tokens with the lowest loss, by Adam, whose learning rate is halved every 50 steps.

    Args:
        loss_of: gives the loss, a differentiable scalar, of mixtures, (length, vocabulary), float32, whose rows sum
            to 1.
        allowed: (vocabulary,), bool, True for tokens that the trigger may contain.
        length: number of tokens of the trigger.
        steps: number of steps.
        learning_rate: first learning rate.
        scaling: how the temperature and the bound are scaled.
        generator: generator of the noise, on the CPU.
        advance: is called with 1 after each step.

    Returns:
        (length,), int64: the tokens that were kept last; if none were, the most likely tokens of the last step.
    """
    v = torch.zeros(length, len(allowed), device=allowed.device, requires_grad=True)
    optimizer = torch.optim.Adam([v], lr=learning_rate)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=50, gamma=0.5)
    temperature, bound, rollbacks = scaling.highest, scaling.bound, 0
    last = lowest = math.inf
    within = False  # whether a loss has been within the bound
    kept: Tensor | None = None
    for step in range(steps):
        if rollbacks >= scaling.patience:
            bound, rollbacks = min(2 * bound, max(lowest - 1e-3, lowest / 2)), 0
        noise: Tensor | float = 0.0
        if within and step % scaling.every == 0:
            if last < bound:
                temperature /= scaling.cooling
            else:
                temperature = min(temperature * scaling.reheating, scaling.highest)
                noise = scaling.noise * torch.rand(v.shape, generator=generator).to(v.device)
                rollbacks += 1
        mixtures = (v / temperature + noise).masked_fill(~allowed, -torch.inf).softmax(dim=1)
        loss = loss_of(mixtures)
        (v.grad,) = torch.autograd.grad(loss, v)
        optimizer.step()
        schedule.step()
        last = float(loss.detach())
        within = within or last <= bound
        shares, tokens = mixtures.detach().max(dim=1)
        if last <= bound and length - float(shares.sum()) < scaling.tolerance:
            kept, lowest, bound, rollbacks = tokens, last, last / 2, 0
        advance(1)
    return tokens if kept is None else kept
