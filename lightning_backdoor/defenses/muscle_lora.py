"""MuScleLoRA (arXiv 2402.12026): training that learns no backdoor, by low rank, many scales and aligned gradients.

A backdoor is a low-frequency mapping and converges first. So the victim is trained through few parameters (LoRA), of
which those in the pooler or head see their input at several frequencies at once, and along nothing but the gradient
of trusted clean rows. Three parts, each of use alone:

- :func:`lightning_backdoor.models.lora.insert_lora`: low-rank updates in the attention layers; backbone, pooler and
  classifier are frozen.
- :func:`insert_multi_scale`: the dense layer before the classifier becomes a :class:`MultiScaleLinear`.
- :func:`align`: the gradient of each parameter, put along that of a clean reference batch.

Without LoRA the backbone and the classifier are trained as usual, as in the paper's ablation. Where the published code
aligns after every backward pass of an accumulated batch, and scores its reference rows in whatever state dropout left
the random generator, the callback aligns once before the step and draws from the run's seed.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightning_backdoor.errors import InputError
from lightning_backdoor.models import lora

#: where the dense layer before the classifier lies; the first is the base model's own.
DENSE = ("{base}.pooler.dense", "{base}.pooler", "pooler.dense", "classifier.dense", "head.dense", "pre_classifier")


class MultiScaleLinear(nn.Module):
    """A frozen linear layer with a trained low-rank update at several radial scalings (arXiv 2402.12026).

    ``y = x Wᵀ + b + (alpha / inner_rank) x (R (L ∘ k))ᵀ`` with ``k`` holding each scaling ``inner_rank`` times.

    Args:
        linear: the layer, (out, in); frozen.
        radial_scalings: factors by which the input's frequencies are scaled down.
        inner_rank: rows of ``L`` a scaling.
        alpha: weight of the update.

    Attributes:
        L: (scalings * inner_rank, in), float32.
        R: (out, scalings * inner_rank), float32.

    >>> layer = MultiScaleLinear(nn.Linear(4, 3), radial_scalings=[1, 2], inner_rank=1, alpha=6)
    >>> x = torch.randn(5, 4)
    >>> torch.allclose(layer(x), layer.merged()(x), atol=1e-6)
    True
    """

    k: Tensor

    def __init__(self, linear: nn.Linear, radial_scalings: Sequence[float], inner_rank: int, alpha: float) -> None:
        super().__init__()
        self.linear = linear.requires_grad_(False)
        self.scaling = alpha / inner_rank
        weight = linear.weight
        rows = len(radial_scalings) * inner_rank
        self.L = nn.Parameter(torch.empty(rows, weight.shape[1], dtype=weight.dtype, device=weight.device))
        self.R = nn.Parameter(torch.empty(weight.shape[0], rows, dtype=weight.dtype, device=weight.device))
        k = torch.tensor([float(scaling) for scaling in radial_scalings]).repeat_interleave(inner_rank)
        self.register_buffer("k", k.to(weight))
        for part in (self.L, self.R):
            nn.init.kaiming_uniform_(part, a=math.sqrt(5))  # as a linear layer of torch begins

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        y: Tensor = self.linear(x) + self.scaling * ((x @ self.L.T) * self.k) @ self.R.T
        return y

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """A plain linear layer that computes the same."""
        linear = copy.deepcopy(self.linear)
        linear.weight += self.scaling * self.R @ (self.k[:, None] * self.L)
        return linear


class MultiScaleHead(nn.Module):
    """What a decoder has before and in place of its output layer: dense, dropout, output; all linear, so they merge."""

    def __init__(self, score: nn.Linear, radial_scalings: Sequence[float], inner_rank: int, alpha: float) -> None:
        super().__init__()
        dense = nn.Linear(score.in_features, score.in_features, bias=False).to(score.weight)
        self.dense = MultiScaleLinear(dense, radial_scalings, inner_rank, alpha)
        self.dropout = nn.Dropout(0.1)
        self.out_proj = score

    def forward(self, x: Tensor) -> Tensor:
        """(..., hidden) to (..., labels)."""
        y: Tensor = self.out_proj(self.dropout(self.dense(x)))
        return y

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """A plain linear layer that computes the same in evaluation."""
        linear = copy.deepcopy(self.out_proj)
        linear.weight.copy_(linear.weight @ self.dense.merged().weight)
        return linear


def insert_multi_scale(
    network: PreTrainedModel, radial_scalings: Sequence[float], inner_rank: int, alpha: float
) -> None:
    """Makes the dense layer before the classifier multi-scale, in place; a decoder gets one (:class:`MultiScaleHead`).

    Raises:
        InputError: the network has neither such a layer nor a linear ``score``.
    """
    for place in (place.format(base=network.base_model_prefix) for place in DENSE):
        layer = _submodule(network, place)
        if isinstance(layer, nn.Linear):
            new: nn.Module = MultiScaleLinear(layer, radial_scalings, inner_rank, alpha)
            break
    else:
        place, score = "score", _submodule(network, "score")
        if not isinstance(score, nn.Linear):
            raise InputError(
                "multi_scale", f"{type(network).__name__} has no pooler or head to replace", "switch it off"
            )
        new = MultiScaleHead(score, radial_scalings, inner_rank, alpha)
    network.set_submodule(place, new.train(network.training))


def merged(network: PreTrainedModel) -> PreTrainedModel:
    """A plain copy of the network that computes the same in evaluation, LoRA and multi-scale layers merged."""
    plain = lora.merge_lora(network)
    for name, module in list(plain.named_modules()):
        if isinstance(module, MultiScaleHead | MultiScaleLinear) and _submodule(plain, name) is module:
            plain.set_submodule(name, module.merged())
    return plain.requires_grad_(True)


def _submodule(network: nn.Module, place: str) -> nn.Module | None:
    try:
        return network.get_submodule(place)
    except AttributeError:
        return None


def align(task: Tensor, reference: Tensor, raw_ratio: float = 0.0) -> Tensor:
    """A gradient put along that of clean rows (arXiv 2402.12026).

    ``a = |g · r| / ‖r‖² r``, always along ``+r``; blended, ``(1 - raw_ratio) a + raw_ratio g``. Where the reference is
    zero, the gradient stays.

    Args:
        task: gradient of the training batch, any shape.
        reference: gradient of the reference batch, same shape.
        raw_ratio: share of the gradient itself, from 0 to 1.

    >>> align(torch.tensor([3.0, 4.0]), torch.tensor([-2.0, 0.0]))
    tensor([-3.,  0.])
    """
    squared = reference.square().sum()
    along = (task * reference).sum().abs() / squared
    blend = (1 - raw_ratio) * along * reference + raw_ratio * task
    return torch.where(squared > 0, blend, task)


def raw_gradient_ratio(epoch: int, epochs: int, start_epoch: int, most: float) -> float | None:
    """Share of the raw gradient while the reference rows are learned well enough, growing from ``start_epoch`` on.

    Returns:
        From 0 to ``most``; None where gradients are not aligned then: before ``start_epoch``, or with ``most`` 0.

    >>> [raw_gradient_ratio(epoch, epochs=9, start_epoch=1, most=0.5) for epoch in (0, 1, 5)]
    [None, 0.0, 0.25]
    """
    if most == 0 or epoch < start_epoch:
        return None
    return most * (epoch - start_epoch) / (epochs - start_epoch)


def mean_norm(gradients: Iterable[Tensor]) -> Tensor:
    """Mean of the norms that are not zero; scalar, 0 where all are."""
    norms = torch.stack([gradient.norm() for gradient in gradients])
    return norms.sum() / (norms > 0).sum().clamp(min=1)
