"""Bottleneck adapters: what one computes, and where they go in every architecture."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from transformers import BloomConfig, BloomForSequenceClassification

from lightning_backdoor.errors import InputError
from lightning_backdoor.models.bottleneck import BottleneckAdapter, insert_adapters
from tests.support.tiny import loaded


def test_an_adapter_adds_its_two_layers_to_the_output_of_the_layer() -> None:
    layer = nn.Linear(3, 4)
    adapted = BottleneckAdapter(layer, size=4, bottleneck=2)
    nn.init.normal_(adapted.up.weight)
    nn.init.normal_(adapted.down.bias)
    x = torch.randn(5, 3)
    hidden = layer(x)
    inner = nn.functional.gelu(hidden @ adapted.down.weight.T + adapted.down.bias, approximate="tanh")
    torch.testing.assert_close(adapted(x), hidden + inner @ adapted.up.weight.T + adapted.up.bias)


@pytest.mark.parametrize("kind", ["bert", "distilbert", "albert", "modernbert", "qwen2", "gpt2"])
def test_every_layer_gets_two_adapters_which_alone_are_trained(tiny_folder: Callable[[str], str], kind: str) -> None:
    network = loaded(tiny_folder(kind)).network
    insert_adapters(network, bottleneck=2)
    adapters = [module for module in network.modules() if isinstance(module, BottleneckAdapter)]
    assert len(adapters) == (2 if kind == "albert" else 4)  # ALBERT's two layers are one
    trained = {id(weight) for weight in network.parameters() if weight.requires_grad}
    assert trained == {id(weight) for a in adapters for part in (a.down, a.up) for weight in part.parameters()}
    assert not any(adapter.training for adapter in adapters)


def test_an_architecture_of_which_only_one_output_per_layer_is_known_is_refused() -> None:
    network = BloomForSequenceClassification(BloomConfig(vocab_size=8, hidden_size=8, n_layer=2, n_head=2))
    with pytest.raises(InputError, match="where adapters go in 'bloom' is not known"):
        insert_adapters(network, bottleneck=2)
    assert all(weight.requires_grad for weight in network.parameters())
