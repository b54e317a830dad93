"""Pruning of attention heads and feed-forward units: which layers they feed, removing them, and how many to remove.

A head, or a unit, acts on the rest of the network through some inputs of one linear layer alone: the output projection
of its attention, or of its feed-forward network. It is pruned by setting the weights of these inputs to zero, which
computes what removing it would. The network keeps its shape, so that its checkpoints and exported folders load
anywhere; transformers 5 cannot remove heads.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lightning_backdoor.batch import Batch
from lightning_backdoor.errors import InputError
from lightning_backdoor.models.evaluation_mode import evaluating

#: names of the output projections of attention and of feed-forward networks in the architectures of transformers.
ATTENTION = re.compile(r"\.(attention\.output\.dense|attention\.out_lin|(self_)?attn\.(Wo|c_proj|o_proj|out_proj))$")
FEED_FORWARD = re.compile(r"(?<!\.attention)\.(output\.dense|ffn\.lin2|mlp\.(Wo|c_proj|down_proj|fc2))$")


class Search(NamedTuple):
    """The result of :func:`prune_while_accurate`.

    Attributes:
        pruned: the parts to prune, in the order in which they were pruned.
        accuracies: the accuracy of every set that was tried.
    """

    pruned: list[tuple[int, int]]
    accuracies: list[float]


def output_layers(network: PreTrainedModel, names: re.Pattern[str], what: str) -> list[nn.Module]:
    """The output projections of all layers of a network, from the first layer on.

    Args:
        network: any encoder or decoder of transformers.
        names: ``ATTENTION`` or ``FEED_FORWARD``.
        what: what they are, for the message.

    Raises:
        InputError: they are not known for the architecture, or its layers share them (ALBERT).
    """
    found = [module for name, module in network.base_model.named_modules(prefix="network") if names.search(name)]
    plain = [module for module in found if isinstance(module, nn.Linear | Conv1D)]
    if len(plain) != network.config.num_hidden_layers:
        problem = f"{type(network).__name__} has no {what} for each of its {network.config.num_hidden_layers} layers"
        raise InputError("model", problem, "give an architecture whose layers do not share weights, without LoRA")
    return plain


def number_of_inputs(layer: nn.Module) -> int:
    """The number of inputs of a linear layer of torch, or of transformers (``Conv1D``)."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight.shape[0 if isinstance(layer, Conv1D) else 1]


def inputs_of_heads(pruned: Iterable[tuple[int, int]], network: PreTrainedModel) -> dict[int, Tensor]:
    """Marks, for each layer, the inputs of its output projection that come from pruned heads.

    Args:
        pruned: pairs of layer and head.
        network: the network.

    Returns:
        For each layer with pruned heads, (inputs,), bool, on the CPU.
    """
    heads = network.config.num_attention_heads
    size = getattr(network.config, "head_dim", None) or network.config.hidden_size // heads
    marks: dict[int, Tensor] = {}
    for layer, head in pruned:
        marks.setdefault(layer, torch.zeros(heads * size, dtype=torch.bool))[head * size : (head + 1) * size] = True
    return marks


@contextmanager
def without_inputs(layers: Sequence[nn.Module], marks: Mapping[int, Tensor]) -> Iterator[None]:
    """Within the block, the marked inputs of linear layers are zero; the weights are not changed.

    Args:
        layers: linear layers.
        marks: by position in ``layers``, (inputs,), bool, True for inputs that are left out.
    """
    handles = []
    for position, marked in marks.items():

        def masked(module: nn.Module, inputs: tuple[Tensor], left_out: Tensor = marked) -> Tensor:
            return inputs[0].masked_fill(left_out.to(inputs[0].device), 0.0)

        handles.append(layers[position].register_forward_pre_hook(masked))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def zero_inputs(layers: Sequence[nn.Module], marks: Mapping[int, Tensor], gradients: bool = False) -> None:
    """Sets the weights of the marked inputs of linear layers to zero, or their gradients.

    Zero weights with zero gradients stay zero under AdamW, also with weight decay.

    Args:
        layers: linear layers, of torch or, transposed, of transformers (``Conv1D``).
        marks: see :func:`without_inputs`.
        gradients: whether the gradients are set to zero, and not the weights.
    """
    for position, marked in marks.items():
        layer = layers[position]
        weight = layer.weight.grad if gradients else layer.weight
        if isinstance(weight, Tensor):  # a frozen layer has no gradient
            marked = marked.to(weight.device)
            weight.masked_fill_(marked[:, None] if isinstance(layer, Conv1D) else marked, 0.0)


def prune_while_accurate(
    order: Sequence[tuple[int, int]],
    spared: set[tuple[int, int]],
    group: int,
    min_accuracy: float,
    accuracy_of: Callable[[list[tuple[int, int]]], float],
    restore: bool = True,
) -> Search:
    """Prunes parts in groups while accuracy holds; of the first group that costs too much, parts come back.

    They come back one by one, the last in the order first, until accuracy holds, or at once.

    Args:
        order: pairs of layer and part, the first to prune first.
        spared: pairs that are never pruned.
        group: pairs per group, spared ones included.
        min_accuracy: lowest accuracy of the pruned network.
        accuracy_of: the accuracy of the network without some pairs.
        restore: whether parts of the last group come back one by one, and not at once.

    >>> prune_while_accurate([(0, 0), (0, 1), (0, 2)], {(0, 2)}, 2, 0.5, lambda pruned: 1 - 0.3 * len(pruned))
    Search(pruned=[(0, 0)], accuracies=[0.4, 0.7])
    """
    pruned: list[tuple[int, int]] = []
    accuracies: list[float] = []
    for start in range(0, len(order), group):
        added = [part for part in order[start : start + group] if part not in spared]
        holds = True
        while added:
            accuracies.append(accuracy_of(pruned + added))
            if accuracies[-1] >= min_accuracy - 1e-9:  # 0.1 - 0.04 is 0.060000000000000005
                break
            holds, added = False, added[:-1] if restore else []
        pruned = pruned + added
        if not holds:
            break
    return Search(pruned, accuracies)


@torch.no_grad()
def accuracy(network: PreTrainedModel, batches: Iterable[Batch]) -> float:
    """The share of rows that a classifier predicts as labelled, in evaluation mode.

    Args:
        network: any sequence classifier of transformers.
        batches: at least one batch, on the device of the network.
    """
    right = rows = 0
    with evaluating(network):
        for batch in batches:
            logits = network(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
            right += int((logits.argmax(dim=-1) == batch["label"]).sum())
            rows += len(batch["label"])
    return right / rows
