"""Fine-pruning (arXiv 1805.12185): units that clean texts leave dormant are pruned, then the rest is fine-tuned.

A backdoor uses units that are dormant on clean inputs. The paper prunes the channels of the last convolutional layer in
the order of their mean activation on clean inputs, until accuracy on clean validation rows falls below a threshold, and
then fine-tunes on clean inputs. In a transformer, the units are those between the two dense layers of a feed-forward
network. The activation functions of transformers also give negative values, so that the activation of a unit is the
mean of its absolute value over the tokens of clean texts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightning_backdoor.batch import Batch
from lightning_backdoor.models.evaluation_mode import evaluating


@torch.no_grad()
def mean_activations(network: PreTrainedModel, layers: Sequence[nn.Module], batches: Iterable[Batch]) -> list[Tensor]:
    """The mean absolute value of every input of some linear layers over all tokens of clean texts.

    Args:
        network: the network that has the layers.
        layers: linear layers, whose inputs are (batch, length, units).
        batches: at least one batch, on the device of the network.

    Returns:
        For each layer, (units,), float32, on the CPU.
    """
    sums: list[Tensor | float] = [0.0] * len(layers)
    tokens, handles = 0, []
    for position, layer in enumerate(layers):

        def add(module: nn.Module, inputs: tuple[Tensor], position: int = position) -> None:
            sums[position] += (inputs[0].float().abs() * mask[:, :, None]).sum(dim=(0, 1)).cpu()

        handles.append(layer.register_forward_pre_hook(add))
    try:
        with evaluating(network):
            for batch in batches:
                mask = batch["attention_mask"]
                network(input_ids=batch["input_ids"], attention_mask=mask)
                tokens += int(mask.sum())
    finally:
        for handle in handles:
            handle.remove()
    return [torch.as_tensor(total) / tokens for total in sums]


def dormant_first(activations: Sequence[Tensor]) -> list[tuple[int, int]]:
    """Pairs of layer and unit, by mean activation from the lowest on.

    Args:
        activations: for each layer, (units,).

    >>> dormant_first([torch.tensor([0.3, 0.1]), torch.tensor([0.2, 0.4])])
    [(0, 1), (1, 0), (0, 0), (1, 1)]
    """
    pairs = [(layer, unit) for layer, of in enumerate(activations) for unit in range(len(of))]
    order = torch.cat([*activations]).argsort(stable=True)
    return [pairs[position] for position in order.tolist()]


def marks_of(pruned: Iterable[tuple[int, int]], units: Sequence[int]) -> dict[int, Tensor]:
    """Marks pruned units, for each layer that has some, (units,), bool.

    Args:
        pruned: pairs of layer and unit.
        units: number of units of each layer.
    """
    marks: dict[int, Tensor] = {}
    for layer, unit in pruned:
        marks.setdefault(layer, torch.zeros(units[layer], dtype=torch.bool))[unit] = True
    return marks
