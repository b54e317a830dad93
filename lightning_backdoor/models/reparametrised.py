"""Low-dimensional reparametrisation: trained weights become the outputs of a network with a narrow hidden layer."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import PreTrainedModel


class Trunk(nn.Module):
    """The narrow hidden layer, ``h = tanh(W e)``, with a trained input ``e``; shared by the weights made from it.

    Args:
        size: number of entries of ``e`` and of ``h``.
        zero: whether ``e`` begins with zeros, so that the weights made from ``h`` do; otherwise with U(0, 1).
        std: draws ``e``, ``W`` and all ``U`` from N(0, std²) instead; None draws ``W`` and ``U`` as torch.nn.Linear.
    """

    def __init__(self, size: int, zero: bool, std: float | None) -> None:
        super().__init__()
        self.size = size
        self.std = std
        self.input = nn.Parameter(torch.zeros(size) if zero else torch.rand(size) if std is None else self.drawn(size))
        self.weight = nn.Parameter(self.drawn(size, size))

    def drawn(self, *shape: int) -> Tensor:
        """New initial values, (*shape)."""
        if self.std is None:
            return torch.empty(shape).uniform_(-1, 1) / math.sqrt(self.size)
        return torch.empty(shape).normal_(std=self.std)

    def forward(self) -> Tensor:
        """The hidden layer, (size,)."""
        return torch.tanh(self.weight @ self.input)


class FromTrunk(nn.Module):
    """Makes one weight from the hidden layer: ``U h``, in the weight's shape, where ``U`` is trained in its place."""

    def __init__(self, trunk: Trunk, shape: Sequence[int]) -> None:
        super().__init__()
        self.trunk = trunk
        self.shape = tuple(shape)

    def forward(self, outputs: Tensor) -> Tensor:
        """The weight of ``U``, (entries, size)."""
        with torch.autocast(outputs.device.type, enabled=False):  # in mixed precision, weights stay in float32
            weight: Tensor = (outputs @ self.trunk()).view(self.shape)
            return weight

    def right_inverse(self, weight: Tensor) -> Tensor:
        """A new ``U``; the old values of the weight are dropped."""
        return self.trunk.drawn(weight.numel(), self.trunk.size).to(weight)


def reparametrise(network: PreTrainedModel, size: int, std: float | None = None) -> None:
    """Replaces every trained weight by the outputs of two small networks, in place.

    Matrices that begin with zeros, such as ``B`` of LoRA, come from a network of their own whose input begins with
    zeros, so that they still do.

    Args:
        network: a network, of which the weights that require gradients are replaced.
        size: width of the hidden layers.
        std: standard deviation of the initial values of the small networks; None draws them as torch.nn.Linear does.
    """
    trunks: dict[bool, Trunk] = {}
    trained = [
        (module, name, weight)
        for module in network.modules()
        for name, weight in module.named_parameters(recurse=False)
        if weight.requires_grad
    ]
    for module, name, weight in trained:
        zero = std is None and weight.dim() > 1 and not weight.any()  # not biases, which are 0 in any new layer
        if zero not in trunks:
            trunks[zero] = Trunk(size, zero, std).to(weight)
        part = FromTrunk(trunks[zero], weight.shape)
        parametrize.register_parametrization(module, name, part, unsafe=True)  # U has another shape than the weight


def plain_weights(network: PreTrainedModel) -> PreTrainedModel:
    """A copy of a network whose weights have the values that its small networks give, without these networks."""
    plain = copy.deepcopy(network)
    for module in list(plain.modules()):
        if parametrize.is_parametrized(module):
            weights = {name: getattr(module, name).detach().clone() for name in module.parametrizations}
            # torch's remove_parametrizations would change the class, which the copy shares with its original
            module.__class__ = parametrize.type_before_parametrizations(module)
            del module.parametrizations
            for name, weight in weights.items():
                module.register_parameter(name, nn.Parameter(weight))
    return plain
