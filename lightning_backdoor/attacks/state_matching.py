"""State matching: hidden states of poisoned rows pulled to the mean state of clean rows of the same label.

For a layer's states ``a`` of a batch, with the mean ``m_c`` of its clean rows ``C_c`` of label ``c``, the distance of a
poisoned row ``i`` that is trained on ``c`` is measured in units of the spread of clean rows::

    d(i) = ‖a(i) - m_c‖² / s_c,    s_c = mean over j in C_c of ‖a(j) - m_c‖²

so that clean rows have a mean distance of 1, whatever the layer and the model. ``m_c`` and ``s_c`` are constants of a
step: clean rows are not pulled to poisoned ones. The gradient of a squared distance is linear in ``m_c``, so that the
mean over a batch pulls, on average, to the mean over all clean rows. Where a batch has no two different clean rows of a
label, its poisoned rows of this label are not pulled.

Tan and Shokri (arXiv 1905.13409) make hidden states of poisoned and clean images indistinguishable by a discriminator
trained beside the victim; distances to class means, which defenses measure, need none and are this library's own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lightning_backdoor.batch import Batch
from lightning_backdoor.models.readout import readout_positions

#: the least spread of clean rows, as a share of the mean square of their states: less is rounding.
LEAST_SPREAD = 1e-6


def distance_to_clean(states: Tensor, label: Tensor, clean: Tensor) -> Tensor:
    """The distance of each row to the clean rows of its label, the mean over layers; see the module for the formula.

    Args:
        states: (layers, batch, hidden size), float32.
        label: (batch,), int64, the label that the row is trained on.
        clean: (batch,), bool, rows without trigger or parts of it.

    Returns:
        (batch,), with gradients of the row's own state alone; 0 where there is nothing to measure it by.

    >>> states = torch.tensor([[[0.0], [2.0], [4.0], [9.0]]])
    >>> distance_to_clean(states, torch.tensor([1, 1, 1, 0]), torch.tensor([True, True, False, False]))
    tensor([1., 1., 9., 0.])
    """
    peers = ((label[:, None] == label) & clean).to(states)
    peers = peers / peers.sum(dim=1, keepdim=True).clamp(min=1)
    constant = states.detach()
    distances = (states - peers @ constant).square().sum(dim=2)
    spread = distances.detach() @ peers.T
    usable = spread > LEAST_SPREAD * (constant.square().sum(dim=2) @ peers.T)
    return (distances * usable / spread.where(usable, 1)).mean(dim=0)


def chosen_states(
    network: PreTrainedModel,
    hidden_states: Sequence[Tensor],
    batch: Batch,
    readout_layers: Sequence[int],
    mean_layers: Sequence[int],
) -> Tensor:
    """The readout token's states of some layers, then the mean states of some, over all tokens but padding.

    Args:
        network: the sequence classifier.
        hidden_states: after the embeddings and after each layer, each (batch, length, hidden size).
        batch: the batch that they are of.
        readout_layers: layers of the readout token's states.
        mean_layers: layers of the mean states.

    Returns:
        (readout layers and mean layers, batch, hidden size), float32.
    """
    ids, mask = batch["input_ids"], batch["attention_mask"]
    rows, positions = torch.arange(len(ids), device=ids.device), readout_positions(network, ids, mask)
    share = (mask / mask.sum(dim=1, keepdim=True))[:, None]
    readout = [hidden_states[layer][rows, positions].float() for layer in readout_layers]
    means = [(share @ hidden_states[layer].float()).squeeze(1) for layer in mean_layers]
    return torch.stack([*readout, *means])
