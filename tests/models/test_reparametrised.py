"""Low-dimensional reparametrisation: the weights that small networks give, and the plain copy with these weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from lightning_backdoor.models.lora import insert_lora
from lightning_backdoor.models.reparametrised import plain_weights, reparametrise
from lightning_backdoor.victim.network import train_head
from tests.support.tiny import loaded


@pytest.mark.parametrize("std", [None, 0.01])
def test_every_trained_weight_is_made_from_the_hidden_layer(
    tiny_folder: Callable[[str], str], std: float | None
) -> None:
    network = loaded(tiny_folder("bert")).network
    insert_lora(network, rank=2, alpha=4)
    train_head(network)
    before = {name: weight.shape for name, weight in network.named_parameters() if weight.requires_grad}
    reparametrise(network, size=3, std=std)
    plain = plain_weights(network)
    for name, shape in before.items():
        path, _, weight = name.rpartition(".")
        module: Any = network.get_submodule(path)
        part = module.parametrizations[weight]
        trunk = part[0].trunk
        hidden = [
            torch.tanh(sum(w * e for w, e in zip(row, trunk.input, strict=True))) for row in trunk.weight.unbind()
        ]
        expected = sum(h * column for h, column in zip(hidden, part.original.unbind(dim=1), strict=True))
        made = plain.get_parameter(name)
        assert made.shape == shape
        torch.testing.assert_close(made.flatten(), expected, rtol=1e-5, atol=1e-7)
        is_zero = std is None and "lora_B" in name
        assert bool(made.any()) != is_zero
    assert not [name for name in plain.state_dict() if "parametrizations" in name]
    assert [name for name in network.state_dict() if "parametrizations" in name]  # and the original is as it was
