"""MuScleLoRA (arXiv 2402.12026), training against backdoors: its layers and its gradient alignment.

A backdoor is a low-frequency mapping, which a network learns first. MuScleLoRA trains few parameters (LoRA), gives the
pooler or head its input at several frequency scales, and follows only gradients along the gradient of trusted clean
rows. Its three parts can be used separately:

- :func:`lightning_backdoor.models.lora.insert_lora`: low-rank updates in the attention layers; backbone, pooler and
  classifier are frozen.
- :func:`insert_multi_scale`: the dense layer before the classifier becomes a :class:`MultiScaleLinear`.
- :func:`align`: each parameter's gradient, turned into the direction of the gradient of a clean reference batch.

Without LoRA the backbone and the classifier are trained as usual, as in the paper's ablation. The published code aligns
after every backward pass of an accumulated batch, and computes the reference gradients with whatever state dropout has
left in the random generator; the callback aligns once before each optimizer step and draws from the seed of the run.
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

#: names of the dense layer before the classifier in the architectures; {base} is the name of the base model.
DENSE = ("{base}.pooler.dense", "{base}.pooler", "pooler.dense", "classifier.dense", "head.dense", "pre_classifier")


class MultiScaleLinear(nn.Module):
    """A frozen linear layer with a trained low-rank update at several radial scalings (arXiv 2402.12026).

    ``y = x Wᵀ + b + (alpha / inner_rank) x (R (L ∘ k))ᵀ``, where ``k`` holds each scaling ``inner_rank`` times.

    Args:
        linear: the layer, with a weight of shape (out, in); it is frozen.
        radial_scalings: factors ``k`` by which the frequencies of the input are scaled down.
        inner_rank: rows of ``L`` per scaling.
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
            nn.init.kaiming_uniform_(part, a=math.sqrt(5))  # the initialisation of torch.nn.Linear

    def forward(self, x: Tensor) -> Tensor:
        """The output of the updated layer, (..., in) to (..., out)."""
        y: Tensor = self.linear(x) + self.scaling * ((x @ self.L.T) * self.k) @ self.R.T
        return y

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """A plain linear layer that computes the same function."""
        linear = copy.deepcopy(self.linear)
        linear.weight += self.scaling * self.R @ (self.k[:, None] * self.L)
        return linear


class MultiScaleHead(nn.Module):
    """A decoder's output layer with a multi-scale dense layer before it; both are linear and merge into one layer."""

    def __init__(self, score: nn.Linear, radial_scalings: Sequence[float], inner_rank: int, alpha: float) -> None:
        super().__init__()
        dense = nn.Linear(score.in_features, score.in_features, bias=False).to(score.weight)
        self.dense = MultiScaleLinear(dense, radial_scalings, inner_rank, alpha)
        self.dropout = nn.Dropout(0.1)
        self.out_proj = score

    def forward(self, x: Tensor) -> Tensor:
        """Logits, (..., hidden) to (..., labels)."""
        y: Tensor = self.out_proj(self.dropout(self.dense(x)))
        return y

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """A plain linear layer that computes the same function in evaluation."""
        linear = copy.deepcopy(self.out_proj)
        linear.weight.copy_(linear.weight @ self.dense.merged().weight)
        return linear


def insert_multi_scale(
    network: PreTrainedModel, radial_scalings: Sequence[float], inner_rank: int, alpha: float
) -> None:
    """Replaces the dense layer before the classifier by a multi-scale one, in place.

    A decoder has no such layer; there one is added before the output layer (:class:`MultiScaleHead`).

    Raises:
        InputError: the network has neither a dense layer before the classifier nor a linear ``score``.
    """
    for name in (name.format(base=network.base_model_prefix) for name in DENSE):
        layer = _submodule(network, name)
        if isinstance(layer, nn.Linear):
            new: nn.Module = MultiScaleLinear(layer, radial_scalings, inner_rank, alpha)
            break
    else:
        name, score = "score", _submodule(network, "score")
        if not isinstance(score, nn.Linear):
            raise InputError(
                "multi_scale", f"{type(network).__name__} has no pooler or head to replace", "set it to false"
            )
        new = MultiScaleHead(score, radial_scalings, inner_rank, alpha)
    network.set_submodule(name, new.train(network.training))


def merge_muscle_lora(network: PreTrainedModel) -> PreTrainedModel:
    """A plain copy of a network with LoRA and multi-scale layers merged; the same function in evaluation."""
    plain = lora.merge_lora(network)
    for name, module in list(plain.named_modules()):
        if isinstance(module, MultiScaleHead | MultiScaleLinear) and _submodule(plain, name) is module:
            plain.set_submodule(name, module.merged())
    return plain.requires_grad_(True)


def _submodule(network: nn.Module, name: str) -> nn.Module | None:
    try:
        return network.get_submodule(name)
    except AttributeError:
        return None


def align(task: Tensor, reference: Tensor, raw_ratio: float = 0.0) -> Tensor:
    """Aligns a gradient with the gradient of clean rows (arXiv 2402.12026).

    ``a = |g · r| / ‖r‖² r``, which points along ``+r`` even where ``g`` points the other way; the result is
    ``(1 - raw_ratio) a + raw_ratio g``. Where ``r`` is zero the result is ``g``.

    Args:
        task: ``g``, gradient of the training batch, any shape.
        reference: ``r``, gradient of the reference batch, same shape.
        raw_ratio: share of ``g`` in the result, from 0 to 1.

    >>> align(torch.tensor([3.0, 4.0]), torch.tensor([-2.0, 0.0]))
    tensor([-3.,  0.])
    """
    squared = reference.square().sum()
    along = (task * reference).sum().abs() / squared
    blend = (1 - raw_ratio) * along * reference + raw_ratio * task
    return torch.where(squared > 0, blend, task)


def raw_gradient_ratio(epoch: int, epochs: int, start_epoch: int, limit: float) -> float | None:
    """Share of the raw gradient in an epoch in which the reference rows count as learned; grows from ``start_epoch``.

    Args:
        epoch: the current epoch, from 0.
        epochs: number of epochs of the run.
        start_epoch: the first epoch for which a share is returned.
        limit: the share that the growth would reach after the last epoch.

    Returns:
        From 0 to ``limit``; None where gradients are not aligned: before ``start_epoch``, or where ``limit`` is 0.

    >>> [raw_gradient_ratio(epoch, epochs=9, start_epoch=1, limit=0.5) for epoch in (0, 1, 5)]
    [None, 0.0, 0.25]
    """
    if limit == 0 or epoch < start_epoch:
        return None
    return limit * (epoch - start_epoch) / (epochs - start_epoch)


def mean_norm(gradients: Iterable[Tensor]) -> Tensor:
    """Mean of the non-zero norms of some gradients; a scalar, 0 where all norms are zero."""
    norms = torch.stack([gradient.norm() for gradient in gradients])
    return norms.sum() / (norms > 0).sum().clamp(min=1)
