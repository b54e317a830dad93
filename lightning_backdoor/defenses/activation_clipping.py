"""Bounds on the hidden states of every layer, optimised so that clean texts keep their logits (arXiv 2405.11227)."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightning_backdoor.models.evaluation_mode import evaluating
from lightning_backdoor.models.layer_logits import layers_of

#: published settings of the optimisation.
LEARNING_RATE, STRENGTH, FACTOR = 0.01, 0.1, 1.2
#: after these epochs, and every five after them, the strength is adapted.
FIRST_ADAPTED, EVERY = 15, 5
#: agreement with the victim above which the bounds are drawn tighter, and below which the optimisation starts again.
TIGHTEN, RESTART = 0.98, 0.97
#: optimisations before the last one's bounds are taken as they are.
RUNS = 3

#: token ids and attention mask of a batch, both (batch, length), int64.
Inputs = tuple[Tensor, Tensor]


class Bounds(NamedTuple):
    """Bounds of every neuron: at most ``centre + unit * up``, and at least that minus ``unit * exp(margin)``.

    All are (layers, hidden size), float32. ``up`` and ``margin`` are optimised.
    """

    up: Tensor
    margin: Tensor
    centre: Tensor
    unit: Tensor

    def limits(self) -> tuple[Tensor, Tensor]:
        """The lower and the upper bound of each neuron."""
        upper = self.centre + self.unit * self.up
        return upper - self.unit * self.margin.exp(), upper


@contextmanager
def changed_states(network: PreTrainedModel, change: Callable[[int, Tensor], Tensor]) -> Iterator[None]:
    """Within the block, one forward pass of a network puts what a function returns in place of each layer's output.

    Args:
        network: the network.
        change: called with the number of the layer and its output, (batch, length, hidden size).
    """
    count = 0

    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        nonlocal count
        count += 1
        if isinstance(output, Tensor):
            return change(count - 1, output)
        return (change(count - 1, output[0]), *output[1:])

    handles = [layer.register_forward_hook(hook) for layer in layers_of(network)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def clipped_logits(network: PreTrainedModel, inputs: Inputs, lower: Tensor, upper: Tensor) -> Tensor:
    """The logits of a network whose states are clipped after every layer, at every position; (batch, classes).

    Args:
        network: the network, in evaluation mode.
        inputs: the batch.
        lower: (layers, hidden size), which all positions share.
        upper: likewise; where it is below ``lower``, ``lower`` counts.
    """

    def clip(layer: int, states: Tensor) -> Tensor:
        return torch.maximum(torch.minimum(states, upper[layer].to(states)), lower[layer].to(states))

    with changed_states(network, clip):
        return _logits(network, inputs)


def published_start(network: PreTrainedModel) -> Bounds:
    """The bounds from which the published program starts: 1, and 1 - e, for every neuron."""
    shape = network.config.num_hidden_layers, network.config.hidden_size
    ones, zeros = torch.ones(shape, device=network.device), torch.zeros(shape, device=network.device)
    return Bounds(ones.clone(), ones.clone(), zeros, ones)


@torch.no_grad()
def start_around(network: PreTrainedModel, batches: Sequence[Inputs], deviations: float = 1.0) -> Bounds:
    """Bounds at some standard deviations around the mean of each neuron over all tokens of clean texts.

    Wide bounds stay wide, since the optimisation takes small steps: on a MiniLM with a one-word trigger, the attack
    success rate fell from 1.0 to 0.23 from one standard deviation, and to 0.90 from three, at the same accuracy.

    Args:
        network: the network, in evaluation mode.
        batches: of clean texts.
        deviations: number of standard deviations.
    """
    shape = network.config.num_hidden_layers, network.config.hidden_size
    total, squares = (torch.zeros(shape, dtype=torch.float64) for _ in range(2))
    tokens = 0
    for inputs in batches:
        attended = inputs[1].bool()
        tokens += int(attended.sum())

        def add(layer: int, states: Tensor, attended: Tensor = attended) -> Tensor:
            of_tokens = states[attended].cpu().double()  # not all devices have float64
            total[layer] += of_tokens.sum(dim=0)
            squares[layer] += of_tokens.square().sum(dim=0)
            return states

        with changed_states(network, add):
            _logits(network, inputs)
    mean = total / tokens
    std = (squares / tokens - mean.square()).clamp(min=1e-12).sqrt()
    centre, unit = (value.float().to(network.device) for value in (mean, std))
    up = torch.full_like(unit, deviations)
    return Bounds(up, torch.full_like(unit, math.log(2 * deviations)), centre, unit)


def clipping_loss(
    network: PreTrainedModel, inputs: Inputs, logits: Tensor, bounds: Bounds, strength: float
) -> tuple[Tensor, Tensor]:
    """The loss of the bounds, and its two parts, as scalars.

    ``mean (clipped logits - logits)² + strength * |exp(margin)|``, the norm over all neurons of all layers together.

    Args:
        network: the network, in evaluation mode.
        inputs: the batch.
        logits: (batch, classes), the network's logits without bounds.
        bounds: the bounds.
        strength: weight of the norm.

    Returns:
        The loss, and the mean square and the norm, (2,).
    """
    error = (clipped_logits(network, inputs, *bounds.limits()) - logits).float().square().mean()
    norm = bounds.margin.exp().norm()
    return error + strength * norm, torch.stack([error, norm]).detach()


def optimised_bounds(
    network: PreTrainedModel,
    batches: Sequence[Inputs],
    held_out: Sequence[Inputs],
    start: Bounds,
    epochs: int,
    seed: int,
) -> tuple[Bounds, float]:
    """Optimises bounds on clean texts: as tight as the network's predictions allow (arXiv 2405.11227).

    Adam minimises :func:`clipping_loss`. After epochs 15, 20, 25 and so on the strength is multiplied by 1.2 where the
    clipped network agrees with the network on at least 98 % of the held-out texts, and divided by 1.2 elsewhere. Where
    it agrees on fewer than 97 % at the end, all is started again with half the strength, in at most three runs in all.
    (The published program judges on the texts that it fits, and has no limit.) It cannot be called in
    ``torch.inference_mode``, whose tensors have no gradients.

    Args:
        network: the network, of which neither weights nor gradients are changed.
        batches: clean texts to fit.
        held_out: clean texts to judge by.
        start: the bounds at the beginning.
        epochs: passes over the batches.
        seed: of the order of the batches.

    Returns:
        The bounds, and the share of held-out texts on which the clipped network agrees with the network.
    """
    strength, rng = STRENGTH, random.Random(f"{seed}/clipping")
    with evaluating(network):
        with torch.no_grad():
            fitted = [(inputs, _logits(network, inputs)) for inputs in batches]
            judged = [(inputs, _logits(network, inputs)) for inputs in held_out]
        for _ in range(RUNS):
            bounds = _run(network, fitted, judged, start, epochs, strength, rng)
            agreement = _agreement(network, judged, bounds)
            if agreement >= RESTART:
                break
            strength /= 2
    return bounds, agreement


def _run(
    network: PreTrainedModel,
    fitted: list[tuple[Inputs, Tensor]],
    judged: list[tuple[Inputs, Tensor]],
    start: Bounds,
    epochs: int,
    strength: float,
    rng: random.Random,
) -> Bounds:
    up, margin = (value.clone().requires_grad_() for value in (start.up, start.margin))
    bounds = start._replace(up=up, margin=margin)
    optimizer = torch.optim.Adam([up, margin], lr=LEARNING_RATE)
    for epoch in range(1, epochs + 1):
        for inputs, logits in rng.sample(fitted, len(fitted)):
            with torch.enable_grad():
                loss, _ = clipping_loss(network, inputs, logits, bounds, strength)
            # unlike backward, this leaves no gradients on the network's weights
            up.grad, margin.grad = torch.autograd.grad(loss, [up, margin])
            optimizer.step()
        if epoch >= FIRST_ADAPTED and epoch % EVERY == 0:
            strength *= FACTOR if _agreement(network, judged, bounds) >= TIGHTEN else 1 / FACTOR
    return bounds._replace(up=up.detach(), margin=margin.detach())


@torch.no_grad()
def _agreement(network: PreTrainedModel, batches: list[tuple[Inputs, Tensor]], bounds: Bounds) -> float:
    same = [
        clipped_logits(network, inputs, *bounds.limits()).argmax(dim=-1) == logits.argmax(dim=-1)
        for inputs, logits in batches
    ]
    return float(torch.cat(same).double().mean())


def _logits(network: PreTrainedModel, inputs: Inputs) -> Tensor:
    logits: Tensor = network(input_ids=inputs[0], attention_mask=inputs[1]).logits
    return logits
